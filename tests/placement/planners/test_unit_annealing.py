import numpy as np
import pytest

from segue.env import ScenarioSampler
from segue.placement.coarsen import coarsen
from segue.placement.move_cost import MoveCost
from segue.placement.planners.unit_annealing import anneal_units


def scenario(seed):
    drawn = ScenarioSampler(4, 40)(np.random.default_rng(seed))
    return drawn.clock, coarsen(drawn.clock.graph, 24), drawn.start.devices


@pytest.mark.parametrize("seed", range(6))
def test_the_best_is_no_worse_than_the_start_and_priced_rightly(seed):
    clock, groups, start = scenario(seed)
    found = anneal_units(clock, groups, start, evaluations=200, seed=seed)
    assert found.evaluations <= 200
    assert clock.evaluate(found.devices) == (found.step_time_s, found.overflow_bytes)
    if clock.evaluate(start)[1] == 0:
        assert found.overflow_bytes == 0
        assert found.step_time_s <= clock.step_time(start)


def test_the_same_seed_gives_the_same_answer():
    clock, groups, start = scenario(1)
    one, two, other = (anneal_units(clock, groups, start, evaluations=300, seed=seed) for seed in (5, 5, 6))
    assert np.array_equal(one.devices, two.devices)
    assert not np.array_equal(one.trail, other.trail) or not np.array_equal(one.devices, other.devices)


def test_more_evaluations_find_more():
    gains = []
    for seed in range(8):
        clock, groups, start = scenario(seed)
        few, many = (anneal_units(clock, groups, start, evaluations=n, seed=0).step_time_s for n in (20, 2000))
        gains.append(np.log(few / many))
    assert np.mean(gains) > 0.05


def test_what_moving_costs_is_part_of_what_is_lowered():
    clock, groups, start = scenario(1)
    free = anneal_units(clock, groups, start, evaluations=300)
    ops = clock.graph.num_ops
    dear = anneal_units(clock, groups, start, evaluations=300, move_cost=MoveCost(start, np.zeros(ops), 1e3))
    assert not np.array_equal(free.devices, start)
    assert np.array_equal(dear.devices, start)
    some = MoveCost(start, np.full(ops, free.step_time_s / ops), 0.0)
    near = anneal_units(clock, groups, start, evaluations=300, move_cost=some)
    assert near.step_time_s + some.of(near.devices) <= clock.step_time(start)


def test_what_is_to_be_avoided_is_not_the_answer():
    clock, groups, start = scenario(1)
    first = anneal_units(clock, groups, start, evaluations=300)
    second = anneal_units(clock, groups, start, evaluations=300, avoid=[first.devices])
    assert not np.array_equal(first.devices, second.devices)
    assert second.step_time_s >= first.step_time_s


def test_the_trail_begins_at_the_start():
    clock, groups, start = scenario(2)
    found = anneal_units(clock, groups, start, evaluations=100, snapshots=(1, 50, 90))
    assert found.trail.shape == (3, clock.graph.num_ops)
    assert np.array_equal(found.trail[0], start)


def test_spans_reach_placements_that_no_single_unit_leads_to():
    clock, groups, start = scenario(2)
    units = {unit.tobytes() for unit in groups.units}
    # At such temperatures every move is taken, so the state after the first one is a single move away.
    moved = set()
    for seed in range(40):
        found = anneal_units(
            clock, groups, start, evaluations=3, seed=seed, runs=0.0, spans=1.0, hot=1e9, cold=1e8, snapshots=[2]
        )
        changed = np.flatnonzero((found.trail[0] != start)[groups.first_op()])
        moved.add(changed.tobytes())
        assert len(changed) <= groups.num_groups / 2 + 1
    assert moved - units
