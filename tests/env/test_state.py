import numpy as np
import pytest

from segue.env import EnvConfig, ScenarioSampler
from segue.env.problem import make_problem
from segue.env.state import allowed_moves, make_state
from segue.placement.placement import Placement


def state_of(seed, devices):
    scenario = ScenarioSampler(5, 40)(np.random.default_rng(seed))
    problem = make_problem(scenario.clock, EnvConfig(24, 8, 96))
    devices = devices(problem)
    return make_state(problem, devices, scenario.clock.step(Placement(devices, scenario.clock.microbatches)))


def alternating(problem):
    """Whole groups in turn on all devices."""
    return np.arange(problem.num_groups)[problem.groups.group_of] % problem.num_devices


@pytest.mark.parametrize("seed", range(4))
def test_a_unit_goes_to_its_target_and_nothing_else_moves(seed):
    state = state_of(seed, alternating)
    of = state.problem.groups.group_of
    for unit in np.flatnonzero(state.swaps_with < 0):
        devices = state.moved(unit, 1)
        inside = state.member[unit][of] > 0
        assert (devices[inside] == 1).all()
        assert np.array_equal(devices[~inside], state.devices[~inside])


@pytest.mark.parametrize("seed", range(4))
def test_two_devices_change_places(seed):
    state = state_of(seed, alternating)
    for unit in np.flatnonzero(state.swaps_with >= 0):
        one = state.swaps_with[unit]
        for other in range(state.problem.num_devices):
            names = np.arange(state.problem.num_devices)
            names[[one, other]] = names[[other, one]]
            assert np.array_equal(state.moved(unit, other), names[state.devices])


@pytest.mark.parametrize("seed", range(12))
def test_what_is_allowed_changes_something_and_its_state_fits(seed):
    state = state_of(seed, alternating)
    problem = state.problem
    op_bytes = problem.clock.costs.state_bytes
    capacity = problem.clock.topology.memory_bytes
    allowed = allowed_moves(state)
    for unit, device in np.argwhere(allowed):
        devices = state.moved(unit, device)
        assert (devices != state.devices).any()
        held = np.bincount(devices, op_bytes, problem.num_devices)
        grown = held > np.bincount(state.devices, op_bytes, problem.num_devices) * (1 + 1e-9)
        assert (held[grown] <= capacity[grown] * (1 + 1e-9)).all()
