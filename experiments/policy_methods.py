"""Methods that policies are held against: annealing in several strengths, the same search without what was learned."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..agent.annealing import RUNS, SPANS
from ..agent.network import Encoding, PlacementNetwork, Scores
from ..agent.propose import propose, propose_from_plans
from ..agent.search import SearchSettings
from ..env.observation import ESTIMATE
from ..placement.clock import SimulatedClock
from ..placement.coarsen import coarsen
from ..placement.move_cost import free_of_charge
from ..placement.placement import Placement
from ..placement.planners import expand, plan
from ..placement.planners.cheap_plans import cheap_plans
from ..placement.planners.unit_annealing import anneal_units

GROUPS = 64
Method = Callable[[SimulatedClock, Placement, int, int], float]
"""Of a clock, a start, evaluations and a seed: the best step time that fits memory, else infinite."""


class BoundsAlone(PlacementNetwork):
    """No network: a move is as good as its estimate from the pipeline's bounds says."""

    def score(self, encoding: Encoding, units: Tensor, moves: Tensor) -> Scores:
        """Logits that fall with the estimated step time."""
        scores = super().score(encoding, units, moves)
        return scores._replace(logits=-50.0 * moves[..., ESTIMATE], stop=torch.zeros_like(scores.stop))


def bounds_alone(network: PlacementNetwork) -> BoundsAlone:
    """What stands for a network where moves are chosen by their bounds."""
    return BoundsAlone(**network.arguments).eval().requires_grad_(False)


def untrained(network: PlacementNetwork) -> PlacementNetwork:
    """A network of the same size with fresh weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PlacementNetwork(**network.arguments).eval().requires_grad_(False)


def by_place(network: PlacementNetwork, settings: SearchSettings | None = None) -> Method:
    """What `segue place` does: the cheap planners' answers, which count as evaluations, then the search with a policy."""

    def method(clock: SimulatedClock, start: Placement, evaluations: int, seed: int) -> float:
        found = propose_from_plans(
            clock, start, policy=network, evaluations=evaluations, seed=seed, move_cost=free_of_charge(start.devices),
            settings=settings,
        )  # fmt: skip
        return found.predicted_step_time_s if found.feasible else np.inf

    return method


def by_policy(network: PlacementNetwork, settings: SearchSettings | None = None) -> Method:
    """The search with a policy, from the start alone."""

    def method(clock: SimulatedClock, start: Placement, evaluations: int, seed: int) -> float:
        found = propose(
            clock, start, policy=network, evaluations=evaluations, seed=seed, max_groups=GROUPS, settings=settings
        )
        return found.predicted_step_time_s if found.feasible else np.inf

    return method


def uniform() -> SearchSettings:
    """The same search with moves drawn uniformly; without rollouts, which would only walk at random."""
    return replace(SearchSettings(), rollouts=0, uniform=1.0)


def by_annealing(hot: float, *, singles: bool = False, runs: float = 0.0, spans: float = 0.0) -> Method:
    """Simulated annealing from the start; for the moves see `anneal_units`."""

    def method(clock: SimulatedClock, start: Placement, evaluations: int, seed: int) -> float:
        groups = coarsen(clock.graph, GROUPS)
        found = anneal_units(
            clock, groups, start.devices, evaluations=evaluations, seed=seed, hot=hot, singles=singles, runs=runs,
            spans=spans,
        )  # fmt: skip
        return found.step_time_s if found.overflow_bytes == 0 else np.inf

    return method


HOT = (0.05, 0.02, 0.005)
"""Hottest temperatures, as relative changes of the step time."""


def by_all_moves(hot: float) -> Method:
    """Simulated annealing from the start, with the agent's own share of each kind of uniform moves."""
    return by_annealing(hot, runs=RUNS, spans=SPANS)


ANNEALING: dict[str, Method] = {
    **{f"annealing of single groups, {hot:g}": by_annealing(hot, singles=True) for hot in (0.05, 0.01)},
    **{f"annealing of units, {hot:g}": by_annealing(hot) for hot in HOT},
    **{f"annealing with all uniform moves, {hot:g}": by_all_moves(hot) for hot in HOT},
}
"""The number is the hottest temperature."""
GIVEN = {
    "of single groups": [name for name in ANNEALING if "single groups" in name],
    "and of units": [name for name in ANNEALING if "all uniform moves" not in name],
    "and with all uniform moves": list(ANNEALING),
}
"""Annealings by how much of segue they are given, each row with those before it."""


def by_plans(hot: float | None) -> Method:
    """The best of the start and the cheap planners' answers; then, unless `hot` is None, simulated annealing from there."""

    def method(clock: SimulatedClock, start: Placement, evaluations: int, seed: int) -> float:
        plans = cheap_plans(clock, seed, max(1, evaluations - 2))
        left = evaluations - sum(found.evaluations for found in plans) - 1
        step_s, overflow = clock.evaluate(start.devices)
        begin = start
        # The best plan comes first.
        if (plans[0].overflow_bytes, plans[0].value_s) < (overflow, step_s):
            overflow, step_s = plans[0].overflow_bytes, plans[0].value_s
            begin = Placement(plans[0].devices, start.microbatches)
        best = step_s if overflow == 0 else np.inf
        if hot is None or left < 1:
            return best
        return min(best, by_all_moves(hot)(clock, begin, left, seed))

    return method


PLANNED: dict[str, Method] = {
    "cheap plans alone": by_plans(None),
    **{f"annealing from the cheap plans, {hot:g}": by_plans(hot) for hot in HOT},
}


def manual_starts(clock: SimulatedClock) -> dict[str, tuple[float, np.ndarray]]:
    """Step time and map of every manual configuration; infinite where it does not fit memory."""
    plans = [plan(name, clock) for name in expand(("manual",), clock.topology)]
    return {found.planner: (found.value_s if found.feasible else np.inf, found.devices) for found in plans}
