import numpy as np
import pytest

from segue.env import EnvConfig, ScenarioSampler
from segue.env.problem import make_problem
from segue.env.state import make_state
from segue.placement.objective_clock import make_clock


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
