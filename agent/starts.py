"""`cheap_plans`: the cheap planners' answers, which the policy starts from and never does worse than."""

from collections.abc import Iterator

import numpy as np

from ..placement.clock import SimulatedClock
from ..placement.planners import Plan, plan
from ..placement.planners.manual import CONFIGURATIONS, compute_seconds


def cheap_plans(clock: SimulatedClock, seed: int, evaluations: int) -> list[Plan]:
    """Manual configurations and constructive planners, as many as the evaluations allow, the best first.

    Single devices come first, the fastest before the others; of them the first that fits memory is the best there is.

    Args:
        clock: what is to be placed, and where.
        seed: of every planner.
        evaluations: placements that may be priced.
    """
    plans: list[Plan] = []
    left, fits = evaluations, False
    for name in _names(clock):
        if left < 1:
            break
        if name.startswith("single:") and fits:
            continue
        plans.append(plan(name, clock, seed=seed, evaluations=left))
        left -= plans[-1].evaluations
        fits = fits or plans[-1].feasible
    return sorted(plans, key=lambda found: (found.overflow_bytes, found.value_s))


def _names(clock: SimulatedClock) -> Iterator[str]:
    seconds = compute_seconds(clock).sum(axis=0)
    for device in np.argsort(seconds, kind="stable"):
        yield f"single:{clock.topology.devices[device].name}"
    yield from CONFIGURATIONS
    yield from ("contiguous", "heft")
