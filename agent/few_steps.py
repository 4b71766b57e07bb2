"""`optimise`: a good placement from a few measured steps."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..placement.clock import SimulatedClock, StepReport
from ..placement.placement import Placement
from ..placement.planners.annealing import anneal
from ..placement.planners.plan import Evaluator
from .beliefs import Beliefs
from .network import PlacementNetwork
from .propose import propose
from .starts import cheap_plans

Ints = NDArray[np.int64]
Planner = Callable[[SimulatedClock, Placement, Mapping[str, Ints], int], Placement]

# Every so many probes one is planned on costs drawn from the beliefs instead of the likeliest ones.
DRAWN_EVERY = 4
# The last probes are not.
LAST = 4
# Placements measured before that each proposal starts from, the fastest first.
KEPT = 3
_TRIES = 4
# Between these is the temperature at which single ops are annealed, as a share of the step time: another one every time,
# so that not every plan ends where the last one did.
TEMPERATURES = (0.003, 0.1)


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


def policy_planner(evaluations: int = 800, polish: int = 3000, policy: PlacementNetwork | None = None) -> Planner:
    """Plans with `propose`, from the cheap plans and the placements that were measured, and anneals single ops after that.

    Args:
        evaluations: simulated placements a proposal, half of them at most for the cheap plans.
        polish: simulated placements for annealing; these are cheap, no network looks at them.
        policy: by default the shipped one.
    """

    def planner(clock: SimulatedClock, start: Placement, others: Mapping[str, Ints], seed: int) -> Placement:
        plans = cheap_plans(clock, seed, evaluations // 2)
        starts = {**{found.planner: found.devices for found in plans}, **others}
        left = max(2, evaluations - sum(found.evaluations for found in plans))
        found = propose(clock, start, policy=policy, evaluations=left, seed=seed, starts=starts).placement
        evaluator = Evaluator(clock, 1 + polish)
        evaluator(found.devices)
        rng = np.random.default_rng(seed)
        anneal(evaluator, rng, float(np.exp(rng.uniform(*np.log(TEMPERATURES)))))
        return Placement(evaluator.devices, start.microbatches)

    return planner


def optimise(
    measure: Callable[[Placement], StepReport],
    beliefs: Beliefs,
    start: Placement | None = None,
    evaluations: int = 20,
    seed: int = 0,
    planner: Planner | None = None,
) -> list[Probe]:
    """Measure, learn, plan on what was learned, and again.

    Most probes are the best that the planner finds on the likeliest costs; every fourth one on costs drawn from what is
    believed (Thompson, Biometrika 1933), and so is any that would repeat what was measured. None of the last few is drawn
    unless it would repeat.

    Args:
        measure: trains a step under a placement; a report with a timeline teaches more.
        beliefs: what is known; learns from every step. Its window must be 1.
        start: measured first; by default what the planner finds on the beliefs.
        evaluations: placements to measure.
        seed: the same seed and reports give the same probes.
        planner: finds a placement on a simulator; by default `policy_planner()`.

    Returns:
        The probes in the order in which they were measured; `best` is the answer. Fewer than `evaluations` if there is
        nothing left to try.
    """
    probes: list[Probe] = []
    for placement in _placements(probes, beliefs, start, evaluations, seed, planner or policy_planner()):
        predicted = beliefs.predict(placement).step_time_s
        report = measure(placement)
        beliefs.observe(placement, report)
        beliefs.correct()
        probes.append(Probe(placement, report, predicted))
    return probes


def best(probes: list[Probe]) -> Probe:
    """The fastest probe of those that fit memory."""
    return min(probes, key=lambda probe: probe.rank)


def _placements(
    probes: list[Probe], beliefs: Beliefs, start: Placement | None, evaluations: int, seed: int, planner: Planner
) -> Iterator[Placement]:
    """What to measure next, as long as something is left to try; `probes` grows meanwhile."""
    rng = np.random.default_rng(seed)
    microbatches = len(beliefs.sizes)
    if start is None:
        anywhere = Placement(np.zeros(beliefs.graph.num_ops, np.int64), microbatches)
        start = planner(beliefs.clock, anywhere, {}, seed)
    yield start
    for number in range(1, evaluations):
        drawn = number % DRAWN_EVERY == DRAWN_EVERY - 1 and number < evaluations - LAST
        ranked = sorted(probes, key=lambda probe: probe.rank)
        others = {f"measured {place}": probe.placement.devices for place, probe in enumerate(ranked[1:KEPT])}
        for attempt in range(_TRIES):
            clock = beliefs.sample(rng) if drawn or attempt else beliefs.clock
            found = planner(clock, ranked[0].placement, others, (seed * evaluations + number) * _TRIES + attempt)
            if all(found != probe.placement for probe in probes):
                break
        else:
            return
        yield found
