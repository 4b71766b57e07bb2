from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from segue.agent.beliefs import Beliefs
from segue.agent.few_steps import Probe, best, optimise, policy_planner
from segue.placement.clock import SimulatedClock, StepReport
from segue.placement.costs import make_costs, roofline
from segue.placement.errors import SegueError
from segue.placement.graph import make_graph
from segue.placement.move_cost import MoveCost
from segue.placement.placement import Placement
from segue.placement.planners import plan
from segue.placement.presets import preset

OPS = 16
GRAPH = make_graph(
    "chain",
    [(i, i + 1) for i in range(OPS - 1)],
    forward_flops=np.full(OPS, 4e8),
    output_bytes=1e5,
    parameter_bytes=1e4,
)
TOPOLOGY = preset("emulated-4")
BELIEVED = SimulatedClock(GRAPH, TOPOLOGY, make_costs(GRAPH, TOPOLOGY), (4,) * 4)
START = Placement(np.repeat(np.arange(4), OPS // 4), 4)
PLANNER = policy_planner(400)


def truth() -> SimulatedClock:
    factors = np.random.default_rng(1).uniform(0.5, 1.5, (OPS, 1))
    topology = TOPOLOGY.with_speed(TOPOLOGY.speed * np.array([1.5, 0.6, 0.7, 1.4]))
    costs = make_costs(GRAPH, topology)
    return SimulatedClock(GRAPH, topology, replace(costs, forward_s=costs.forward_s * factors), BELIEVED.sizes)


def beliefs() -> Beliefs:
    return Beliefs(GRAPH, TOPOLOGY, roofline(GRAPH), BELIEVED.sizes, window=1, grain=0.01)


def probes(evaluations: int = 6, seed: int = 0) -> list[Probe]:
    return list(optimise(truth().step, beliefs(), START, evaluations, seed, PLANNER))


def timed_probes(evaluations: int) -> list[Probe]:
    """Probes whose reports have a timeline."""

    def measure(placement: Placement) -> StepReport:
        return truth().step(placement, timeline=True)

    return list(optimise(measure, beliefs(), START, evaluations, 0, PLANNER))


def test_a_few_steps_find_what_a_long_search_on_the_truth_finds() -> None:
    known = plan("annealing", truth(), evaluations=3000).value_s
    found = best(timed_probes(10)).report.step_time_s
    assert found <= 1.05 * known
    assert found < 0.9 * truth().step_time(START.devices)


def test_predictions_get_better_with_what_was_measured() -> None:
    errors = [abs(np.log(probe.predicted_s / probe.report.step_time_s)) for probe in timed_probes(6)]
    assert np.mean(errors[3:]) < 0.3 * errors[0]


def test_the_start_is_measured_first_and_nothing_twice() -> None:
    measured = [probe.placement for probe in probes()]
    assert measured[0] == START
    assert len(set(measured)) == len(measured) == 6


def test_the_same_seed_gives_the_same_probes() -> None:
    assert [p.placement for p in probes(4, 3)] == [p.placement for p in probes(4, 3)]


def test_nothing_is_planned_after_the_last_measurement() -> None:
    asked = []

    def planner(clock: SimulatedClock, measured: Sequence[Placement], seed: int) -> Placement:
        asked.append(seed)
        return PLANNER(clock, measured, seed)

    list(optimise(truth().step, beliefs(), START, 3, 0, planner))
    assert len(asked) == 2


def test_moving_that_costs_more_than_it_gains_is_not_proposed() -> None:
    clock = truth()
    good = Placement(plan("annealing", clock, evaluations=3000).devices, 4)

    cost = MoveCost(good.devices, np.full(clock.graph.num_ops, 10.0), 0.0)
    found = policy_planner(400, cost)(clock, [good], 0)
    assert len(found.moved(good)) == 1
    assert found != good


def test_beliefs_that_wait_for_several_steps_are_refused() -> None:
    slow = Beliefs(GRAPH, TOPOLOGY, roofline(GRAPH), BELIEVED.sizes, window=3)
    with pytest.raises(SegueError, match="window 1"):
        next(optimise(truth().step, slow, START, planner=PLANNER))
