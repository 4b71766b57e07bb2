import numpy as np
import pytest

from segue.agent.proposer import Request, answer
from segue.placement.clock import SimulatedClock
from segue.placement.costs import make_costs
from segue.placement.graph import make_graph
from segue.placement.placement import Placement
from segue.placement.planners import expand, plan
from segue.placement.planners.cheap_plans import cheap_plans
from segue.placement.presets import preset


def chain(ops: int) -> SimulatedClock:
    rng = np.random.default_rng(0)
    graph = make_graph(
        "chain",
        [(op - 1, op) for op in range(1, ops)],
        ops,
        batch_size=4,
        forward_flops=rng.uniform(1e7, 1e8, ops),
        backward_flops=rng.uniform(1e7, 1e8, ops),
        output_bytes=np.full(ops, 1e5),
    )
    topology = preset("emulated-4")
    return SimulatedClock(graph, topology, make_costs(graph, topology), (4,) * 4)


def test_the_best_comes_first_and_no_more_is_priced_than_allowed() -> None:
    clock = chain(30)
    for most in (1, 3, 7, 200):
        plans = cheap_plans(clock, 0, most)
        assert sum(found.evaluations for found in plans) <= most
        assert [found.value_s for found in plans] == sorted(found.value_s for found in plans)


@pytest.mark.parametrize(("evaluations", "orders"), [(20, 4), (100, 4), (200, 8), (1000, 24)])
def test_the_dynamic_program_prices_the_fewer_orders_the_fewer_evaluations_there_are(evaluations, orders) -> None:
    (found,) = [plan for plan in cheap_plans(chain(30), 0, evaluations) if plan.planner == "contiguous"]
    assert found.evaluations == orders


@pytest.mark.parametrize("ops", [2, 30])
@pytest.mark.parametrize("evaluations", [1, 12, 60])
def test_an_answer_is_not_worse_than_the_best_single_device_however_few_evaluations(ops, evaluations) -> None:
    clock = chain(ops)
    start = Placement(plan("round-robin", clock).devices, 4)
    request = Request(clock, start, np.zeros(ops), 0.0, 1, evaluations, 0)
    best = min(plan(name, clock).value_s for name in expand(["single"], clock.topology))
    proposal = answer(request)
    assert proposal.predicted_step_time_s <= best
    assert proposal.evaluations <= max(3, evaluations)
