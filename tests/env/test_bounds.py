import numpy as np
import pytest

from segue.env import EnvConfig, ScenarioSampler
from segue.env.bounds import bounds_after, bounds_now
from segue.env.observation import make_state
from segue.env.problem import make_problem
from segue.placement.placement import Placement


def state_of(seed):
    scenario = ScenarioSampler(5, 40)(np.random.default_rng(seed))
    clock = scenario.clock
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
    member = state.member > 0
    after = bounds_after(state.problem.pipeline, state.home, member)
    rng = np.random.default_rng(seed)
    for _ in range(10):
        unit, device = rng.integers(len(member)), rng.integers(state.problem.num_devices)
        moved, _ = bounds_now(state.problem.pipeline, np.where(member[unit], device, state.home))
        for one, other in zip(after, moved, strict=True):
            assert one[unit, device] == pytest.approx(float(other))


@pytest.mark.parametrize("seed", range(4))
def test_the_critical_path_is_the_longest_chain_through_any_group(seed):
    state = state_of(seed)
    assert state.through_s.max() == pytest.approx(float(state.bounds.path))


def test_the_estimate_tells_good_moves_from_bad_ones():
    agreements = []
    for seed in range(12):
        state = state_of(seed)
        clock = state.problem.clock
        after = bounds_after(state.problem.pipeline, state.home, state.member > 0).estimate
        rng = np.random.default_rng(seed)
        pairs = [(rng.integers(len(after)), rng.integers(after.shape[1])) for _ in range(40)]
        true = []
        for unit, device in pairs:
            ops = state.member[unit][state.problem.groups.group_of] > 0
            true.append(clock.step(Placement(np.where(ops, device, state.devices), clock.microbatches)).step_time_s)
        estimated = np.array([after[pair] for pair in pairs])
        ranks = [np.argsort(np.argsort(values)) for values in (estimated, np.array(true))]
        agreements.append(np.corrcoef(*ranks)[0, 1])
    assert np.median(agreements) > 0.6
