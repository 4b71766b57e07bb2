import numpy as np
import pytest

from segue.env import EnvConfig, ScenarioSampler
from segue.env.bounds import bounds_after, bounds_now
from segue.env.problem import make_problem
from segue.env.state import make_state
from segue.placement.objective_clock import make_clock
from segue.placement.placement import Placement


def state_of(seed, objective="step-time"):
    scenario = ScenarioSampler(5, 40)(np.random.default_rng(seed))
    clock = scenario.clock
    clock = make_clock(clock.graph, clock.topology, clock.costs, clock.sizes, objective)
    problem = make_problem(clock, EnvConfig(200, 8, 800))
    return make_state(problem, scenario.start.devices, clock.step(scenario.start))


@pytest.mark.parametrize("seed", range(8))
def test_no_step_is_shorter_than_its_fullest_device_or_path(seed):
    state = state_of(seed)
    assert state.bounds.load <= state.report.step_time_s * (1 + 1e-9)
    assert state.bounds.path <= state.bounds.estimate * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_bounds_after_a_move_are_those_of_the_moved_placement(seed):
    state = state_of(seed)
    after = bounds_after(state.problem.pipeline, state.home, state.member > 0, state.swaps_with)
    rng = np.random.default_rng(seed)
    for _ in range(20):
        unit, device = rng.integers(len(state.member), size=1), rng.integers(state.problem.num_devices, size=1)
        homes = state.homes_after(unit, device)[0]
        moved, _ = bounds_now(state.problem.pipeline, np.where(homes >= 0, homes, state.home))
        for one, other in zip(after, moved, strict=True):
            assert one[unit[0], device[0]] == pytest.approx(float(other))


@pytest.mark.parametrize("seed", range(6))
def test_where_the_busiest_device_counts_the_estimate_is_its_load(seed):
    state = state_of(seed, "max-load")
    # Groups send a value once, whatever reads it: exact where a group is an op.
    assert float(state.bounds.estimate) == pytest.approx(state.report.step_time_s, rel=0.25)
    assert float(state.bounds.estimate) == float(state.bounds.load)


@pytest.mark.parametrize("seed", range(4))
def test_the_critical_path_is_the_longest_chain_through_any_group(seed):
    state = state_of(seed)
    assert state.through_s.max() == pytest.approx(float(state.bounds.path))


def test_the_estimate_tells_good_moves_from_bad_ones():
    agreements = []
    for seed in range(12):
        state = state_of(seed)
        clock = state.problem.clock
        after = bounds_after(state.problem.pipeline, state.home, state.member > 0, state.swaps_with).estimate
        rng = np.random.default_rng(seed)
        pairs = [(rng.integers(len(after)), rng.integers(after.shape[1])) for _ in range(40)]
        true = []
        for unit, device in pairs:
            true.append(clock.step(Placement(state.moved(unit, device), clock.microbatches)).step_time_s)
        estimated = np.array([after[pair] for pair in pairs])
        ranks = [np.argsort(np.argsort(values)) for values in (estimated, np.array(true))]
        agreements.append(np.corrcoef(*ranks)[0, 1])
    assert np.median(agreements) > 0.6
