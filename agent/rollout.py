"""`rollout`: the policy's moves one after the other, without taking any back."""

import numpy as np

from .network import PlacementNetwork
from .search import Search, Visit

STOP = 0.9
"""Chance of stopping at which a rollout stops: more moves cost little, and the best of what was seen is kept."""


def rollout(
    search: Search,
    network: PlacementNetwork,
    visit: Visit,
    patience: int,
    floor: int = 0,
    rng: np.random.Generator | None = None,
) -> None:
    """Follow the policy from a visited placement; `search` keeps the best of what is seen.

    It ends when the policy stops, when `patience` moves in a row led to nothing new that is best, or when only `floor`
    evaluations are left. No placement is entered twice.

    Args:
        search: where placements are visited.
        network: the policy.
        visit: where to begin.
        patience: moves without a new best.
        floor: evaluations to leave over.
        rng: samples the moves; without it the likeliest are taken.
    """
    change, idle, lowest, longest = 0.0, 0, visit.energy, 2 * search.problem.num_groups
    for taken in range(longest):
        if search.left <= floor or idle >= patience:
            return
        found = _next(search, network, visit, change, taken / longest, rng)
        if found is None:
            return
        change = float(np.log(found.step_time_s / visit.step_time_s))
        idle = 0 if found.energy < lowest - 1e-9 else idle + 1
        lowest = min(lowest, found.energy)
        visit = found


def _next(
    search: Search,
    network: PlacementNetwork,
    visit: Visit,
    change: float,
    progress: float,
    rng: np.random.Generator | None,
) -> Visit | None:
    """The visit after the best move to a placement that is new; None if the policy is sure that it wants to stop."""
    stop, *moves = search.scores(network, visit, change, progress)
    scores = np.array(moves)
    if stop - np.logaddexp.reduce(scores) >= np.log(STOP / (1 - STOP)):
        return None
    if rng is not None:
        scores = scores + rng.gumbel(size=len(scores))
    for choice in np.argsort(-scores, kind="stable"):
        if scores[choice] == -np.inf:
            return None
        devices = search.moved(visit, int(choice))
        if not search.is_known(devices):
            return search.visit(devices, "policy")
    return None
