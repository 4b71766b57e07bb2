"""`guided_annealing`: annealing over whole units with moves that the policy draws."""

import numpy as np

from .network import PlacementNetwork
from .search import Floats, Search, SearchSettings, Visit


def guided_annealing(
    search: Search, network: PlacementNetwork, visit: Visit, seed: int, settings: SearchSettings, floor: int
) -> None:
    """Annealing from `visit` whose moves the policy draws, until `floor` evaluations are left.

    A move that was refused is not drawn again before the placement changes; once all were, two moves at once are
    accepted whatever they do.
    """
    if search.left <= floor:
        return
    rng = np.random.default_rng(seed)
    total, idle = max(1, search.left - floor), 0
    current, weights = visit, _weights(search, network, visit, settings)
    while search.left > floor and weights.any() and idle < 2 * total:
        before = search.left
        temperature = settings.cold * (settings.hot / settings.cold) ** ((search.left - floor) / total)
        move = int(rng.choice(len(weights), p=weights / weights.sum()))
        alone = rng.random() >= settings.pairs
        found = search.visit(search.moved(current, move), "search")
        if found is not None and not alone:
            found = _and_another(search, network, found, settings, rng)
        idle += search.left == before
        if found is None:
            return
        if found is not current and found.energy - current.energy < temperature * rng.exponential():
            current, weights = found, _weights(search, network, found, settings)
            continue
        weights[move] = 0.0
        if not weights.any():
            for _ in range(2):
                current = _and_another(search, network, current, settings, rng) or current
            weights = _weights(search, network, current, settings)


def _and_another(
    search: Search, network: PlacementNetwork, visit: Visit, settings: SearchSettings, rng: np.random.Generator
) -> Visit | None:
    """The visit after one more move; None if the evaluations are used up."""
    weights = _weights(search, network, visit, settings)
    if not weights.any():
        return visit
    return search.visit(search.moved(visit, int(rng.choice(len(weights), p=weights / weights.sum()))), "search")


def _weights(search: Search, network: PlacementNetwork, visit: Visit, settings: SearchSettings) -> Floats:
    """Chances of all moves `unit * devices + device`, scored once a visit; all zero if none is allowed."""
    if visit not in search.chances:
        search.chances[visit] = _chances(search, network, visit, settings)
    return search.chances[visit].copy()


def _chances(search: Search, network: PlacementNetwork, visit: Visit, settings: SearchSettings) -> Floats:
    if settings.uniform == 1.0:
        scores = np.where(search.allowed(visit), 0.0, -np.inf)
    else:
        scores = settings.sharpness * search.scores(network, [visit])[0][1:]
    allowed = scores > -np.inf
    if not allowed.any():
        return np.zeros(len(scores))
    chances = np.exp(scores - scores.max())
    return (1 - settings.uniform) * chances / chances.sum() + settings.uniform * allowed / allowed.sum()
