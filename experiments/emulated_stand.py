"""A test stand whose every answer is a step of real training, on emulated devices that are not as the agent believes."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from ..agent.few_steps import policy_planner
from ..placement.clock import SimulatedClock, StepReport
from ..placement.costs import Profile, make_costs
from ..placement.executor import Executor, launch
from ..placement.executor.measured_clock import MeasuredClock
from ..placement.placement import Placement
from ..placement.planners import plan
from ..placement.presets import preset
from ..placement.topology import Topology
from .bench_emulated import make_clock
from .measure import MeasureJob
from .mismatch import Case, Stand, slower_links, wrong_by
from .probing import METHODS

Ints = NDArray[np.int64]
SLOWER = 2.0
"""All devices take so many times the preset's time, so that they keep their pace where ops cost half of what is believed."""
AGAIN = 3
"""Steps in which a placement that was the best of a method is measured once more, in turns with all the others."""


class EmulatedStand(Stand):
    """It has the believed costs; what it answers are steps of a run.

    Args:
        believed: what the agent knows.
        profile: the op times that it believes.
        run: times placements by training under them; its executor's costs are the truth.

    Attributes:
        placements: those that were measured, in order.
    """

    def __init__(self, believed: SimulatedClock, profile: Profile, run: MeasuredClock):
        super().__init__(believed, run.executor.clock(), 0, profile)
        self.run = run
        self.placements: list[Placement] = []

    def evaluate(self, devices: Ints) -> tuple[float, float]:
        """Seconds of a step, and bytes by which the tightest device overflows."""
        report = self.step(Placement(devices, self.microbatches))
        return report.step_time_s, float(report.overflow_bytes.max())

    def step(self, placement: Placement, timeline: bool = True) -> StepReport:
        """A step of the run under a placement; one that overflows memory is not run, but simulated on the truth."""
        report = self.run.step(placement)
        self.measured.append((float(report.overflow_bytes.max()), report.step_time_s, report.step_time_s))
        self.placements.append(placement)
        return report if timeline else replace(report, timeline=(), ran=None)


def bench_emulated_case(
    case: Case, seed: int, evaluations: int, reference: int, methods: Sequence[str] = tuple(METHODS)
) -> list[dict[str, Any]]:
    """Every method on one case, each placement measured as a step of training; rows as those of `bench_few_steps`.

    What counts of each method's best placements are the medians of further steps, in turns with the others' and with the
    best that long searches on the truth find.

    Args:
        case: a model of the zoo on emulated devices.
        seed: of the truth and every method.
        evaluations: placements that each method may measure.
        reference: evaluations of the searches on the truth.
        methods: names of those that are compared.

    Raises:
        WorkerFailed: if a worker fails.
    """
    rng = np.random.default_rng(seed)
    job = MeasureJob(case.model, case.batch_size, case.microbatches, case.image_size, seed=seed)
    topology = preset(case.topology)
    topology = topology.with_speed(topology.speed / SLOWER)
    _, profile = make_clock(job, topology)
    count = topology.num_devices
    truth = slower_links(topology.with_speed(topology.speed / wrong_by(rng, (count,))), wrong_by(rng, (count, count)))
    factors = wrong_by(rng, profile.forward_s.shape)
    true_profile = replace(profile, forward_s=profile.forward_s * factors, backward_s=profile.backward_s * factors)
    rows = launch(_work, truth, job, topology, truth, (profile, true_profile), seed, evaluations, reference, methods)[0]
    return [{"case": case.name, **row} for row in rows]


def _work(
    job: MeasureJob, topology: Topology, truth: Topology, profiles: tuple[Profile, Profile], seed: int, evaluations: int,
    reference: int, methods: Sequence[str],
) -> list[dict[str, Any]] | None:  # fmt: skip
    torch.set_num_threads(1)
    example, (profile, true_profile) = job.example(), profiles
    executor = Executor(
        example.step.model,
        optimizer=torch.optim.SGD(example.step.model.parameters(), lr=1e-4),
        loss_fn=example.step.loss_fn,
        example_batch=example.batch,
        topology=truth,
        microbatches=job.microbatches,
        profile=true_profile,
    )
    run = MeasuredClock(executor, itertools.repeat(example.batch), timeline=True)
    if dist.get_rank() != 0:
        run.serve()
        return None
    true = executor.clock()
    believed = SimulatedClock(executor.graph, topology, make_costs(executor.graph, topology, profile), true.sizes)
    stands = {method: EmulatedStand(believed, profile, run) for method in methods}
    for method, stand in stands.items():
        METHODS[method](stand, evaluations, seed)
    rows = _rows(stands, [_long_search(true, seed, reference)], evaluations)
    run.close()
    return [{"late": executor.overruns, **row} for row in rows]


def _rows(stands: dict[str, EmulatedStand], others: Sequence[Placement], evaluations: int) -> list[dict[str, Any]]:
    """Regrets by the medians of further steps of everything that was the best of a method at some time."""
    chosen = {
        name: [stand.placements[place] for place in stand.best_places(evaluations)] for name, stand in stands.items()
    }
    everything = {p.devices.tobytes(): p for p in [*others, *(p for places in chosen.values() for p in places)]}
    run = next(iter(stands.values())).run
    times: dict[bytes, list[float]] = {key: [] for key in everything}
    for _ in range(AGAIN):
        for key, placement in everything.items():
            report = run.step(placement)
            times[key].append(report.step_time_s if report.feasible else np.inf)
    seconds = {key: float(np.median(of)) for key, of in times.items()}
    known = min(seconds.values())
    return [
        {
            "method": name,
            "best_known_s": known,
            "regret": [seconds[placement.devices.tobytes()] / known - 1 for placement in places],
            "measured": len(stands[name].measured),
            "seconds": float(sum(row[1] for row in stands[name].measured)),
        }
        for name, places in chosen.items()
    ]


def _long_search(truth: SimulatedClock, seed: int, evaluations: int) -> Placement:
    """The best that annealing and then the agent's planner find on the simulator that has the true costs."""
    found = Placement(plan("annealing", truth, seed=seed, evaluations=evaluations).devices, truth.microbatches)
    return policy_planner(500 + evaluations)(truth, [found], seed)
