"""`propose_large`: proposals for graphs whose ops are too many to look at one by one."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..placement.clock import SimulatedClock
from ..placement.move_cost import MoveCost
from ..placement.placement import Placement
from ..placement.planners.manual import speed_split
from ..placement.quotient import make_quotient
from .network import PlacementNetwork
from .propose import Proposal, propose, propose_from_plans
from .search import SearchSettings

Ints = NDArray[np.int64]

LARGE = 4096
"""Ops beyond which a graph is."""
FEWEST_GROUPS, GROUPS_A_DEVICE = 1024, 4
"""Groups of the quotient: as many as that, or as many for each device, whichever is more, and no more than `LARGE`."""
COARSE = 0.7
"""Share of the evaluations that go to the quotient."""
ON_OPS = SearchSettings(rollouts=0, guided=0, cycles=1)
"""How the ops' own evaluations are spent: annealing with uniform moves alone."""


def is_large(clock: SimulatedClock) -> bool:
    """Whether a clock's graph is large, and its objective the step time, which a quotient keeps."""
    return type(clock) is SimulatedClock and clock.graph.num_ops > LARGE


def propose_large(
    clock: SimulatedClock,
    start: Placement,
    *,
    policy: PlacementNetwork,
    evaluations: int,
    seed: int,
    move_cost: MoveCost,
) -> Proposal:
    """Look for a faster placement of groups of ops, then for one of the ops from there.

    The cheap plans, the policy's moves and most of the annealing are priced on the quotient's clock, which is several times
    as fast and a little wrong. What they found, expanded, and splits of the ops themselves are priced on the real clock;
    annealing goes on there from the best of them. The answer is no worse than any of these, nor than `start`.

    Args:
        clock: predicts step times.
        start: the placement that runs now.
        policy: decides.
        evaluations: placements that may be priced, those of groups and those of ops together; a few at least.
        seed: the same seed gives the same answer.
        move_cost: what it costs to get to a placement.

    Returns:
        The proposal; its evaluations are those of both clocks.
    """
    count = min(LARGE, max(FEWEST_GROUPS, GROUPS_A_DEVICE * clock.topology.num_devices))
    quotient = make_quotient(clock, count)
    coarse = propose_from_plans(
        quotient.clock,
        Placement(quotient.restrict(start.devices), start.microbatches),
        policy=policy,
        evaluations=int(COARSE * evaluations),
        seed=seed,
        move_cost=quotient.move_cost(move_cost),
    )
    expanded = quotient.expand(coarse.placement.devices)
    fine = propose(
        clock,
        start,
        policy=policy,
        evaluations=max(4, evaluations - coarse.evaluations),
        seed=seed,
        starts={"groups": expanded, **_splits(clock, expanded)},
        move_cost=move_cost,
        settings=ON_OPS,
    )
    found = fine.source == "start:groups" and coarse.source != "start"
    source = coarse.source if found else fine.source
    return replace(fine, source=source, evaluations=fine.evaluations + coarse.evaluations)


def _splits(clock: SimulatedClock, expanded: Ints) -> Mapping[str, Ints]:
    """Splits of the ops: over all devices, and over those that a placement uses, in the order in which it does."""
    used, first = np.unique(expanded, return_index=True)
    return {
        "speed-proportional": speed_split(clock, np.arange(clock.topology.num_devices)),
        "used-devices": speed_split(clock, used[np.argsort(first)]),
    }
