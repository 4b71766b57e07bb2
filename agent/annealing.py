"""`anneal`: what a search does with the evaluations that are left once the policy has drawn its moves."""

from ..placement.coarsen import coarsen
from ..placement.planners.unit_annealing import anneal_units
from .search import Search

ROUNDS = ((0.7, False, 0.02), (0.3, True, 0.01))
"""Annealing runs one after the other: share of the evaluations, whether single ops move, temperature at the start."""
FINEST = 1024
"""Groups at most where single ops move."""
COLDEST = 0.001
RUNS, SPANS = 0.4, 0.6
"""Share of the moves that are ends of runs, and share of the others that are consecutive groups."""


def anneal(search: Search, seed: int) -> None:
    """Compiled annealing with uniform moves from the best placement, until the evaluations are used up."""
    left = search.left
    for number, (share, fine, hot) in enumerate(ROUNDS):
        last = number == len(ROUNDS) - 1
        evaluations = search.left if last else min(search.left, int(share * left))
        if evaluations < 1:
            continue
        assert search.best is not None
        groups = coarsen(search.clock.graph, FINEST) if fine else search.problem.groups
        # Its start is priced again, and counts as one of its own.
        found = anneal_units(
            search.clock, groups, search.best.devices, evaluations=evaluations, seed=seed + number, hot=hot, cold=COLDEST,
            runs=RUNS, spans=SPANS, move_cost=search.move_cost, avoid=search.avoid,
        )  # fmt: skip
        search.take_in(found, "search")
