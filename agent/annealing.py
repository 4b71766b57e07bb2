"""`anneal`: what a search does with the evaluations that are left once the policy has drawn its moves."""

import numpy as np

from ..placement.clock import SimulatedClock
from ..placement.coarsen import Groups, coarsen
from ..placement.planners.unit_annealing import anneal_units
from .search import Ints, Search, Visit

ROUNDS = ((0.4, False, 0.05), (0.3, False, 0.03), (0.3, True, 0.01))
"""Annealing runs one after the other: share of the evaluations, whether single ops move, temperature at the start."""
FINEST = 1024
"""Groups at most where single ops move."""
COLDEST = 0.001
RUNS = 0.4
"""Share of the moves that are ends of runs."""


def anneal(search: Search, seed: int) -> None:
    """Annealing with uniform moves from the best placement, until the evaluations are used up.

    It is compiled where the clock's objective is the step time.
    """
    groups = [search.problem.groups, coarsen(search.clock.graph, FINEST)] if search.left else []
    compiled = type(search.clock).evaluate is SimulatedClock.evaluate
    left = search.left
    for number, (share, fine, hot) in enumerate(ROUNDS):
        last = number == len(ROUNDS) - 1
        evaluations = search.left if last else min(search.left, int(share * left))
        if evaluations < 1:
            continue
        assert search.best is not None
        if compiled:
            # Its start is priced again, and counts as one of its own.
            found = anneal_units(
                search.clock, groups[fine], search.best.devices, evaluations=evaluations, seed=seed + number, hot=hot,
                cold=COLDEST, runs=RUNS, move_cost=search.move_cost, avoid=search.avoid,
            )  # fmt: skip
            search.take_in(found, "search")
        else:
            _anneal_any(search, groups[fine], search.left - evaluations, hot, seed + number)


def _anneal_any(search: Search, groups: Groups, floor: int, hot: float, seed: int) -> None:
    """The same for any objective, asking the clock for each placement, until `floor` evaluations are left."""
    rng = np.random.default_rng(seed)
    total, idle = max(1, search.left - floor), 0
    assert search.best is not None
    current = search.best
    first_op = groups.first_op()
    while search.left > floor and idle < 20 * total:
        before = search.left
        temperature = COLDEST * (hot / COLDEST) ** ((search.left - floor) / total)
        device = int(rng.integers(search.problem.num_devices))
        chosen = (
            _run_end(current, first_op, rng) if rng.random() < RUNS else groups.units[rng.integers(len(groups.units))]
        )
        devices = np.where(np.isin(groups.group_of, chosen), device, current.devices)
        found = search.visit(devices, "search")
        idle += search.left == before
        if found is None:
            return
        if found is not current and found.energy - current.energy < temperature * rng.exponential():
            current = found


def _run_end(visit: Visit, first_op: Ints, rng: np.random.Generator) -> Ints:
    """Groups of one end of a run, cut at a random group."""
    home = visit.devices[first_op]
    group, count = int(rng.integers(len(home))), len(home)
    other = np.flatnonzero(home != home[group])
    place = int(np.searchsorted(other, group))
    if rng.random() < 0.5:
        return np.arange(int(other[place - 1]) + 1 if place else 0, group + 1)
    return np.arange(group, int(other[place]) if place < len(other) else count)
