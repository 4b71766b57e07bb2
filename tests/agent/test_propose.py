import numpy as np
import pytest
import torch

from segue.agent.network import PlacementNetwork
from segue.agent.propose import propose
from segue.agent.search import ZERO_SHOT, SearchSettings
from segue.env import ScenarioSampler
from segue.placement.clock import SimulatedClock
from segue.placement.costs import make_costs
from segue.placement.errors import SegueError
from segue.placement.graph import make_graph
from segue.placement.max_load import MaxLoadClock
from segue.placement.move_cost import MoveCost
from segue.placement.placement import Placement, check_placement
from segue.placement.topology import Device, Topology, uniform_links


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    return PlacementNetwork(hidden=16, rounds=1).eval()


def scenario(seed):
    return ScenarioSampler(4, 30)(np.random.default_rng(seed))


def chain_clock(num_ops, speeds=(1.0, 3.0), memory=1e12, colocation=None):
    graph = make_graph(
        "chain",
        [(i, i + 1) for i in range(num_ops - 1)],
        forward_flops=2e8,
        backward_flops=4e8,
        output_bytes=1e4,
        parameter_bytes=1e6,
        colocation=colocation,
    )
    devices = tuple(Device(f"dev{i}", "emulated", memory, speed) for i, speed in enumerate(speeds))
    places = Topology("test", devices, uniform_links([d.name for d in devices], 1e-5, 1e9))
    return SimulatedClock(graph, places, make_costs(graph, places), (1,) * 4)


@pytest.mark.parametrize("seed", range(6))
def test_a_proposal_is_no_worse_than_any_start_and_keeps_its_budget(policy, seed):
    case = scenario(seed)
    starts = {
        "other": np.random.default_rng(seed).integers(0, case.clock.topology.num_devices, case.clock.graph.num_ops)
    }
    result = propose(case.clock, case.start, policy=policy, evaluations=60, starts=starts)
    assert 1 <= result.evaluations <= 60
    step_time, overflow = case.clock.evaluate(result.placement.devices)
    assert result.predicted_step_time_s == pytest.approx(step_time)
    assert result.feasible == (overflow == 0)
    for devices in (case.start.devices, starts["other"]):
        start_time, start_overflow = case.clock.evaluate(devices)
        assert (overflow, step_time) <= (start_overflow, start_time)
    assert result.moved_ops == len(result.placement.moved(case.start))


def test_evaluations_are_counted_honestly(policy):
    case = scenario(3)
    asked = set()
    for name in ("evaluate", "evaluate_many", "step"):
        ask = getattr(case.clock, name)

        def counted(placement, ask=ask):
            asked.update(row.tobytes() for row in np.atleast_2d(getattr(placement, "devices", placement)))
            return ask(placement)

        setattr(case.clock, name, counted)
    result = propose(case.clock, case.start, policy=policy, evaluations=50)
    assert result.evaluations == len(asked) == 50


def test_the_same_seed_gives_the_same_answer(policy):
    case = scenario(4)
    one, two = (propose(case.clock, case.start, policy=policy, evaluations=80, seed=9) for _ in range(2))
    assert one.placement == two.placement
    assert (one.source, one.evaluations) == (two.source, two.evaluations)


def test_slow_devices_are_relieved(policy):
    clock = chain_clock(16)
    result = propose(clock, Placement(np.zeros(16, np.int64), 4), policy=policy, evaluations=150)
    assert result.predicted_step_time_s < 0.5 * result.start_step_time_s


def test_memory_is_respected(policy):
    clock = chain_clock(16, memory=13 * 4e6)  # parameters, gradients and Adam state of 13 of the 16 ops
    start = Placement(np.repeat([0, 1], 8), 4)
    result = propose(clock, start, policy=policy, evaluations=200)
    assert result.feasible
    assert np.bincount(result.placement.devices).max() <= 13
    assert result.predicted_step_time_s < result.start_step_time_s


def test_a_start_that_overflows_is_left_for_one_that_fits(policy):
    clock = chain_clock(16, memory=13 * 4e6)
    result = propose(clock, Placement(np.ones(16, np.int64), 4), policy=policy, evaluations=100)
    assert result.feasible


def test_moving_has_to_pay_within_the_horizon(policy):
    clock, start = chain_clock(8), Placement(np.zeros(8, np.int64), 4)

    def pause_over(steps):
        return MoveCost(start.devices, np.zeros(8), 100.0 / steps)

    for evaluations in (60, 400):
        stay = propose(clock, start, policy=policy, evaluations=evaluations, move_cost=pause_over(10))
        assert stay.placement == start
        assert (stay.source, stay.moved_ops) == ("start", 0)
        move = propose(clock, start, policy=policy, evaluations=evaluations, move_cost=pause_over(10_000))
        assert move.moved_ops > 0


@pytest.mark.parametrize("evaluations", [30, 400])
def test_what_is_to_be_avoided_is_not_proposed_again(policy, evaluations):
    case = scenario(7)
    avoid = []
    for _ in range(3):
        found = propose(case.clock, case.start, policy=policy, evaluations=evaluations, avoid=avoid)
        assert not any(np.array_equal(found.placement.devices, devices) for devices in avoid)
        avoid.append(found.placement.devices)


def test_any_objective_can_be_searched_beyond_the_policys_moves(policy):
    clock, start = chain_clock(12), Placement(np.zeros(12, np.int64), 4)
    loads = MaxLoadClock(clock.graph, clock.topology, clock.costs, clock.sizes)
    found = propose(loads, start, policy=policy, evaluations=600)
    assert found.evaluations <= 600
    assert found.predicted_step_time_s == pytest.approx(loads.evaluate(found.placement.devices)[0])
    assert found.predicted_step_time_s < 0.5 * loads.evaluate(start.devices)[0]


def test_of_equal_placements_the_nearer_one_is_taken(policy):
    clock = chain_clock(4, speeds=(1.0, 1.0))
    mirrored = {"mirrored": np.ones(4, np.int64)}
    result = propose(clock, Placement(np.zeros(4, np.int64), 4), policy=policy, evaluations=2, starts=mirrored)
    assert result.source == "start"


def test_a_better_start_is_named(policy):
    clock = chain_clock(4)
    result = propose(
        clock,
        Placement(np.zeros(4, np.int64), 4),
        policy=policy,
        evaluations=2,
        starts={"fast": np.array([0, 1, 1, 1])},
    )
    assert result.source == "start:fast"


def test_large_graphs_and_colocation(policy):
    colocation = np.full(300, -1)
    colocation[[0, 299]] = 0
    clock = chain_clock(300, colocation=colocation)
    result = propose(clock, Placement(np.zeros(300, np.int64), 4), policy=policy, evaluations=60, max_groups=24)
    check_placement(result.placement, clock.graph, clock.topology)
    assert result.predicted_step_time_s < result.start_step_time_s


def test_one_device_leaves_nothing_to_do(policy):
    clock = chain_clock(5, speeds=(1.0,))
    start = Placement(np.zeros(5, np.int64), 4)
    result = propose(clock, start, policy=policy)
    assert (result.placement, result.evaluations) == (start, 1)


def test_wrong_arguments_are_refused(policy):
    clock, start = chain_clock(4), Placement(np.zeros(4, np.int64), 4)
    with pytest.raises(SegueError, match="evaluations must be >= 1"):
        propose(clock, start, policy=policy, evaluations=0)
    with pytest.raises(SegueError, match="start wrong: devices: expected one for each of 4 ops"):
        propose(clock, start, policy=policy, starts={"wrong": np.zeros(3, np.int64)})


def test_a_rollout_alone_takes_nothing_back(policy):
    case = scenario(5)
    result = propose(case.clock, case.start, policy=policy, evaluations=500, settings=ZERO_SHOT)
    assert result.evaluations < 200
    assert result.predicted_step_time_s <= result.start_step_time_s
    assert result.source in ("policy", "start")


def test_beyond_the_guided_evaluations_moves_are_drawn_without_the_policy(policy):
    case = scenario(6)
    settings = SearchSettings(guided=40, rollout_share=0.0)
    result = propose(case.clock, case.start, policy=policy, evaluations=400, settings=settings)
    assert 350 < result.evaluations <= 400
    few = propose(case.clock, case.start, policy=policy, evaluations=40, settings=settings)
    assert result.predicted_step_time_s <= few.predicted_step_time_s
