"""`optimise`: a good placement from a few measured steps."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..placement.clock import SimulatedClock, StepReport
from ..placement.errors import SegueError
from ..placement.move_cost import MoveCost
from ..placement.placement import Placement
from ..placement.planners.cheap_plans import cheap_plans
from .beliefs import Beliefs
from .network import PlacementNetwork
from .propose import propose

Ints = NDArray[np.int64]
Planner = Callable[[SimulatedClock, Sequence[Placement], int], Placement]
"""`(simulator, measured placements, the fastest first, seed) -> a placement`, one that was not measured if there is any."""

# Every so many probes one is planned on costs drawn from the beliefs instead of the likeliest ones.
DRAWN_EVERY = 4
# The last probes are not.
LAST = 4
# Placements measured before that each proposal starts from, the fastest first.
KEPT = 3
CHEAP = 600
"""Simulated placements of a plan that the cheap plans may take."""


@dataclass(frozen=True, eq=False)
class Probe:
    """One measured placement.

    Attributes:
        placement: what was measured.
        report: what was measured of it.
        predicted_s: step time that was expected.
    """

    placement: Placement
    report: StepReport
    predicted_s: float

    @property
    def rank(self) -> tuple[float, float]:
        """What decides between probes: overflowing bytes, step time."""
        return float(self.report.overflow_bytes.sum()), self.report.step_time_s


def policy_planner(
    evaluations: int = 3300, move_cost: MoveCost | None = None, policy: PlacementNetwork | None = None
) -> Planner:
    """Plans with `propose`, from the cheap plans and the placements that were measured, what was not measured yet.

    Args:
        evaluations: simulated placements a plan, at most `CHEAP` of them for the cheap plans.
        move_cost: what it costs to move; nothing if not given.
        policy: by default the shipped one.
    """

    def planner(clock: SimulatedClock, measured: Sequence[Placement], seed: int) -> Placement:
        plans = cheap_plans(clock, seed, min(CHEAP, evaluations // 2))
        starts = {found.planner: found.devices for found in plans}
        starts |= {f"measured {place}": found.devices for place, found in enumerate(measured[1:KEPT], 1)}
        left = max(2, evaluations - sum(found.evaluations for found in plans))
        proposal = propose(
            clock, measured[0], policy=policy, evaluations=left, seed=seed, starts=starts, move_cost=move_cost,
            avoid=[found.devices for found in measured],
        )  # fmt: skip
        return proposal.placement

    return planner


def optimise(
    measure: Callable[[Placement], StepReport],
    beliefs: Beliefs,
    start: Placement | None = None,
    evaluations: int = 20,
    seed: int = 0,
    planner: Planner | None = None,
) -> Iterator[Probe]:
    """Measure, learn, plan on what was learned, and again.

    Most probes are the best unmeasured placement that the planner finds on the likeliest costs; every fourth one, but none
    of the last few, on costs drawn from what is believed (Thompson, Biometrika 1933).

    Args:
        measure: trains a step under a placement; a report with a timeline teaches more.
        beliefs: what is known; learns from every step. Its window must be 1.
        start: measured first; by default what the planner finds on the beliefs.
        evaluations: placements to measure.
        seed: the same seed and reports give the same probes.
        planner: finds a placement on a simulator; by default `policy_planner()`.

    Yields:
        The probes, each as soon as it is measured; `best` of them is the answer.

    Raises:
        SegueError: if the beliefs learn from several steps at once.
    """
    if beliefs.window != 1:
        raise SegueError(f"optimise: beliefs must learn from every step (window 1), got window {beliefs.window}")
    planner, rng = planner or policy_planner(), np.random.default_rng(seed)
    probes: list[Probe] = []
    for number in range(evaluations):
        if number == 0:
            placement = start or planner(beliefs.clock, [_anywhere(beliefs)], seed * evaluations)
        else:
            drawn = number % DRAWN_EVERY == DRAWN_EVERY - 1 and number < evaluations - LAST
            clock = beliefs.sample(rng) if drawn else beliefs.clock
            ranked = [probe.placement for probe in sorted(probes, key=lambda probe: probe.rank)]
            placement = planner(clock, ranked, seed * evaluations + number)
        predicted = beliefs.predict(placement).step_time_s
        probes.append(Probe(placement, measure(placement), predicted))
        beliefs.observe(placement, probes[-1].report)
        beliefs.correct()
        yield probes[-1]


def best(probes: Sequence[Probe]) -> Probe:
    """The fastest probe of those that fit memory."""
    return min(probes, key=lambda probe: probe.rank)


def _anywhere(beliefs: Beliefs) -> Placement:
    return Placement(np.zeros(beliefs.graph.num_ops, np.int64), len(beliefs.sizes))
