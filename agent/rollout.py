"""`roll_out`: the policy's moves one after the other, without taking any back, from several placements at once."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from .network import PlacementNetwork
from .search import Floats, Ints, Search, SearchSettings, Visit

STOP = 0.9
"""Chance of stopping at which a rollout stops: more moves cost little, and the best of what was seen is kept."""


@dataclass
class _Rollout:
    """One rollout on its way.

    Attributes:
        visit: where it is.
        lowest: the least energy it has seen.
        change: logarithm of the step time's change by the last move.
        idle: moves since it last found something better than all before.
    """

    visit: Visit
    lowest: float
    change: float = 0.0
    idle: int = 0

    def go(self, visit: Visit) -> None:
        """Take a move."""
        self.change = float(np.log(visit.step_time_s / self.visit.step_time_s))
        self.idle = 0 if visit.energy < self.lowest - 1e-9 else self.idle + 1
        self.lowest, self.visit = min(self.lowest, visit.energy), visit


def roll_out(
    search: Search, network: PlacementNetwork, starts: Sequence[Visit], settings: SearchSettings, floor: int = 0
) -> None:
    """Follow the policy from visited placements, all at once; `search` keeps the best of what is seen.

    In each round the network scores the placements of all rollouts together, and the clock prices in one call where they go:
    each to the likeliest placement where none has been. A rollout ends when the policy stops, when `patience` of its moves in
    a row led to nothing new that is best, and when it is in the worse half after a few moves (successive halving: Karnin et
    al., ICML 2013); all end when only `floor` evaluations are left.

    Args:
        search: where placements are visited.
        network: the policy.
        starts: where to begin; rollouts from the same placement part with their first moves.
        settings: `patience` and `halving`.
        floor: evaluations to leave over.
    """
    rollouts, longest = [_Rollout(visit, visit.energy) for visit in starts], 2 * search.problem.num_groups
    for taken in range(longest):
        rollouts = rollouts[: max(0, search.left - floor)]
        if not rollouts:
            return
        changes = [one.change for one in rollouts]
        scores = search.scores(network, [one.visit for one in rollouts], changes, taken / longest)
        rollouts, maps = _next(search, rollouts, scores)
        for one, visit in zip(rollouts, search.visit_all(maps, "policy"), strict=True):
            assert visit is not None
            one.go(visit)
        rollouts = [one for one in rollouts if one.idle < settings.patience]
        if (taken + 1) % settings.halving == 0:
            rollouts = sorted(rollouts, key=lambda one: one.lowest)[: (len(rollouts) + 1) // 2]


def _next(search: Search, rollouts: Sequence[_Rollout], scores: Sequence[Floats]) -> tuple[list[_Rollout], list[Ints]]:
    """The rollouts that go on, and the placements that they go to."""
    on, maps = [], []
    for one, row in zip(rollouts, scores, strict=True):
        stop, logits = row[0], row[1:]
        if stop - np.logaddexp.reduce(logits) >= np.log(STOP / (1 - STOP)):
            continue
        new = _likeliest(search, one.visit, logits, {devices.tobytes() for devices in maps})
        if new is not None:
            on.append(one)
            maps.append(new)
    return on, maps


def _likeliest(search: Search, visit: Visit, logits: Floats, taken: Collection[bytes]) -> Ints | None:
    """The placement after the likeliest move to one that is new; None if there is none."""
    for move in np.argsort(-logits, kind="stable"):
        if logits[move] == -np.inf:
            return None
        devices = search.moved(visit, int(move))
        if not search.is_known(devices) and devices.tobytes() not in taken:
            return devices
    return None
