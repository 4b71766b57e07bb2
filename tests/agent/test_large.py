import numpy as np
import pytest

from segue.agent import large
from segue.agent.large import is_large, propose_large
from segue.agent.pretrained import load_policy
from segue.experiments.bench_large import large_clock
from segue.experiments.solve import solve
from segue.placement.clock import SimulatedClock
from segue.placement.max_load import MaxLoadClock
from segue.placement.move_cost import MoveCost, free_of_charge
from segue.placement.placement import Placement, check_placement
from segue.placement.planners import plan
from segue.placement.planners.cheap_plans import by_speed, cheap_plans, fastest_devices


def propose(clock: SimulatedClock, start: np.ndarray, evaluations: int, move_cost: MoveCost | None = None):
    placement = Placement(start, clock.microbatches)
    return propose_large(
        clock, placement, policy=load_policy(), evaluations=evaluations, seed=1,
        move_cost=move_cost or free_of_charge(start),
    )  # fmt: skip


@pytest.fixture
def few_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "FEWEST_GROUPS", 24)
    monkeypatch.setattr(large, "GROUPS_A_DEVICE", 1)


@pytest.mark.usefixtures("few_groups")
def test_an_answer_is_priced_on_the_ops_and_no_worse_than_the_start_or_a_split_of_the_ops() -> None:
    clock = large_clock(300, 6, 0)
    start = plan("equal-layers", clock).devices
    proposal = propose(clock, start, 120)
    check_placement(proposal.placement, clock.graph, clock.topology)
    assert proposal.predicted_step_time_s == clock.step_time(proposal.placement.devices)
    assert proposal.start_step_time_s == clock.step_time(start)
    assert proposal.predicted_step_time_s <= min(proposal.start_step_time_s, plan("speed-proportional", clock).value_s)
    assert proposal.evaluations <= 120


@pytest.mark.usefixtures("few_groups")
def test_the_same_request_gives_the_same_answer() -> None:
    clock = large_clock(200, 5, 1)
    start = plan("equal-layers", clock).devices
    first, second = propose(clock, start, 60), propose(clock, start, 60)
    assert (first.placement.devices == second.placement.devices).all()
    assert first.source == second.source


@pytest.mark.usefixtures("few_groups")
def test_what_costs_more_to_reach_than_it_gains_is_not_proposed() -> None:
    clock = large_clock(200, 5, 1)
    start = plan("equal-layers", clock).devices
    proposal = propose(clock, start, 60, MoveCost(start, np.zeros(200), 1e6))
    assert proposal.source == "start"
    assert proposal.moved_ops == 0


def test_large_is_a_matter_of_ops_and_of_the_objective() -> None:
    clock = large_clock(large.LARGE + 1, 2, 0)
    assert is_large(clock)
    assert not is_large(large_clock(large.LARGE, 2, 0))
    assert not is_large(MaxLoadClock(clock.graph, clock.topology, clock.costs, clock.sizes))


def test_the_fastest_few_of_many_devices_are_among_the_starts() -> None:
    clock = large_clock(200, 40, 0)
    found = fastest_devices(clock, 100)
    used = np.unique(found.devices)
    assert set(used) == set(by_speed(clock)[: len(used)])
    assert found.value_s < plan("speed-proportional", clock).value_s
    plans = cheap_plans(clock, 0, 200)
    assert sum(p.planner.startswith("single:") for p in plans) == 1
    assert plans[0].value_s <= found.value_s


@pytest.mark.slow
def test_the_agent_beats_manual_splits_of_many_ops_on_many_devices() -> None:
    clock = large_clock(20_000, 128, 0)
    found = solve("agent", clock, evaluations=300)
    check_placement(Placement(found.devices, clock.microbatches), clock.graph, clock.topology)
    assert found.evaluations <= 300
    for name in ("equal-layers", "speed-proportional"):
        assert found.value_s < 0.9 * plan(name, clock).value_s
