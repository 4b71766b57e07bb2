import numpy as np
import pytest

from segue.env.bounds import bounds_now
from segue.env.bounds_after import bounds_after
from segue.placement.placement import Placement
from tests.env.test_bounds import state_of


@pytest.mark.parametrize("objective", ["step-time", "max-load"])
@pytest.mark.parametrize("seed", range(4))
def test_bounds_after_a_move_are_those_of_the_moved_placement(seed, objective):
    state = state_of(seed, objective)
    pipeline = state.problem.pipeline
    after = bounds_after(pipeline, state.home, state.member > 0, state.swaps_with)
    units, devices = after.path.shape
    assert (state.swaps_with >= 0).any()
    for unit in range(units):
        for device in range(devices):
            homes = state.homes_after(np.array([unit]), np.array([device]))[0]
            moved, _ = bounds_now(pipeline, np.where(homes >= 0, homes, state.home))
            for one, other in zip(after, moved, strict=True):
                assert one[unit, device] == pytest.approx(float(other), rel=1e-9, abs=1e-15)


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
