"""Placements run for real: step times on the executor beside what the simulator says."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from ..placement.clock import SimulatedClock
from ..placement.cores import usable_cores
from ..placement.costs import Profile
from ..placement.errors import SegueError
from ..placement.executor import Executor, WorkerFailed, launch, probe
from ..placement.executor.calibrate import calibrate
from ..placement.placement import Placement
from ..placement.topology import Topology
from .zoo.example import Example, build_example

Ints = NDArray[np.int64]
OUT_OF_MEMORY = "OutOfMemory"


@dataclass(frozen=True)
class Measured:
    """What running one placement gave.

    Attributes:
        step_times_s: of every step that counts, in order; empty if it was not run.
        predicted_s: what the run's own simulator says, with links, overheads and device speeds as they were measured.
        source: `measured` or `emulated`.
        overruns: instructions of emulated devices that took longer than declared.
        reason: why it was not run.
    """

    step_times_s: tuple[float, ...]
    predicted_s: float
    source: str
    overruns: int = 0
    reason: str = ""

    @property
    def median_s(self) -> float:
        """Median step time; not a number if it was not run."""
        return float(np.median(self.step_times_s)) if self.step_times_s else float("nan")

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted_s / self.median_s


@dataclass(frozen=True)
class MeasureJob:
    """What to run, and how often; the same for every placement.

    Attributes:
        model: a model as `build_example` takes it.
        batch_size: samples a step.
        microbatches: parts that a batch is cut into.
        image_size: pixels a side, for models of images.
        sequence_length: tokens, for models of sequences.
        seed: of weights and data.
        rounds: how often each placement has its turn; other placements run in between.
        steps: steps that count in each turn.
        warm: steps before them that do not: caches and allocators warm up after a move.
    """

    model: str
    batch_size: int = 64
    microbatches: int = 8
    image_size: int = 32
    sequence_length: int = 64
    seed: int = 0
    rounds: int = 2
    steps: int = 3
    warm: int = 1

    def example(self) -> Example:
        """The model with a batch of its data."""
        return build_example(
            self.model,
            self.batch_size,
            seed=self.seed,
            image_size=self.image_size,
            sequence_length=self.sequence_length,
        )


def measure_placements(
    job: MeasureJob, topology: Topology, placements: Sequence[Ints], profile: Profile | None = None
) -> list[Measured]:
    """Train a model under each of several placements in turn, in one group of workers on this machine.

    Args:
        job: the model, and how often it runs.
        topology: the devices, one worker each.
        placements: op-to-device maps, `int64[n]` each.
        profile: op times that emulated devices keep to and predictions rest on; measured by the run if not given.

    Returns:
        For each placement, its step times; what overflows a device's memory is not run, and says why.

    Raises:
        SegueError: if a device is not in this machine, or the model cannot be run.
        WorkerFailed: if a worker fails for another reason than memory.
    """
    check_present(topology)
    skipped: dict[int, str] = {}
    with tempfile.TemporaryDirectory(prefix="segue-measure-") as folder:
        turn = Path(folder) / "turn"
        while len(skipped) < len(placements):
            left = [place for place in range(len(placements)) if place not in skipped]
            chosen = [placements[place] for place in left]
            try:
                found = launch(_measure, topology, job, topology, chosen, profile, str(turn))[0]
            except WorkerFailed as error:
                # The executor counts memory as it goes: what fails there has its turn written down.
                if OUT_OF_MEMORY not in str(error) or not turn.exists():
                    raise
                skipped[left[int(turn.read_text())]] = str(error).strip().splitlines()[-1]
                turn.unlink()
                continue
            results = dict(zip(left, found, strict=True))
            return [results.get(i) or Measured((), float("nan"), "", 0, skipped[i]) for i in range(len(placements))]
    return [Measured((), float("nan"), "", 0, skipped[i]) for i in range(len(placements))]


def check_present(topology: Topology) -> None:
    """Check that a topology's devices can be run here.

    Raises:
        SegueError: naming the first device that is not in this machine.
    """
    cores = set(usable_cores())
    gpus = torch.cuda.device_count()
    for device in topology.devices:
        here = f"topology {topology.name}: device {device.name}"
        if device.host not in ("", "localhost", os.uname().nodename):
            raise SegueError(f"{here}: is in host {device.host}; only devices of this machine can be measured")
        if device.kind == "cuda" and device.index >= gpus:
            have = f"{gpus} CUDA devices" if gpus else "no CUDA device"
            raise SegueError(
                f"{here}: is CUDA device {device.index}, but this machine has {have}; compare without --measure"
            )
        if device.kind == "cpu" and not set(device.cores) <= cores:
            missing = ", ".join(map(str, sorted(set(device.cores) - cores)))
            raise SegueError(f"{here}: core {missing} is not among those that this process may use")


def _measure(
    job: MeasureJob, topology: Topology, placements: Sequence[Ints], profile: Profile | None, turn: str
) -> list[Measured]:
    """A worker's part: turns of all placements, as often as the job says."""
    torch.manual_seed(job.seed)
    example = job.example()
    model = example.step.model.train()
    executor = Executor(
        model,
        optimizer=torch.optim.AdamW(model.parameters()),
        loss_fn=example.step.loss_fn,
        example_batch=example.batch,
        topology=probe(topology),
        microbatches=job.microbatches,
        profile=profile,
        seed=job.seed,
    )
    clock = calibrate(executor, example.batch)
    results = [_predict(clock, executor.source, Placement(devices, job.microbatches)) for devices in placements]
    for _ in range(job.rounds):
        for place, devices in enumerate(placements):
            if results[place].reason:
                continue
            if dist.get_rank() == 0:
                Path(turn).write_text(str(place))
            results[place] = _take_turn(
                executor, job, Placement(devices, job.microbatches), example.batch, results[place]
            )
    return results


def _predict(clock: SimulatedClock, source: str, placement: Placement) -> Measured:
    report = clock.step(placement)
    reason = ""
    if not report.feasible:
        device = int(np.argmax(report.overflow_bytes))
        reason = f"does not fit {clock.topology.devices[device].name}"
    return Measured((), report.step_time_s, source, 0, reason)


def _take_turn(executor: Executor, job: MeasureJob, placement: Placement, batch: Any, so_far: Measured) -> Measured:
    executor.apply(placement)
    late, times = executor.overruns, []
    for step in range(job.warm + job.steps):
        executor.step(batch)
        if step >= job.warm and executor.report is not None:
            times.append(executor.report.step_time_s)
    return replace(
        so_far,
        step_times_s=(*so_far.step_times_s, *times),
        overruns=so_far.overruns + executor.overruns - late,
    )
