"""Four emulated devices: ways to run a model on them, in turns, and how much of the transfers is hidden.

Every step is real training at a declared pace, so all seconds here are *emulated*.

- `naive_row`: the step that Hugging Face accelerate's hooks would run of its own `device_map`: the whole batch, one device
  after another. It is run here as one microbatch under the same map, at the same pace a sample; the simulator's
  `strategies.naive` stands beside it. Then the same map, contiguous parts and the agent's placement, pipelined.
- `split_row`: contiguous parts of equal cost by dynamic programming over measured op times, against equal layers.
- `hidden_row`: the share of transfer time in which the receiving device computes.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..agent.propose import propose
from ..placement.capture import capture_program
from ..placement.clock import SimulatedClock
from ..placement.costs import Profile, make_costs, microbatch_sizes
from ..placement.executor import Executor, launch
from ..placement.placement import Placement
from ..placement.planners import plan
from ..placement.planners.cheap_plans import cheap_plans
from ..placement.profile import measure_profile
from ..placement.strategies import naive
from ..placement.topology import Topology
from ..placement.transfers import step_transfers
from .measure import MeasureJob
from .zoo.example import build_example

Ints = NDArray[np.int64]
EVALUATIONS = 1000
"""Simulated placements for the agent."""

ACCELERATE, EQUAL, CONTIGUOUS, AGENT = "accelerate-balanced", "equal-layers", "contiguous", "agent"
NAIVE_HEADERS = (
    "model", "topology", "naive (ms)", "simulated", "same map, pipelined", "contiguous", "agent", "naive/contiguous",
    "naive/agent", "late",
)  # fmt: skip
SPLIT_HEADERS = ("model", "topology", "equal layers (ms)", "contiguous (ms)", "gain", "late")
HIDDEN_HEADERS = (
    "model",
    "topology",
    "placement",
    "transfers",
    "transfer (ms)",
    "hidden",
    "waited for (ms)",
    "step (ms)",
)


@dataclass(frozen=True)
class Turns:
    """What running one placement gave.

    Attributes:
        step_times_s: of every step that counts.
        transfers: messages in a step.
        transfer_s: seconds that they were on their way, all added up.
        hidden: share of these in which the receiver computed.
        waited_s: seconds in which a device had nothing else to do, all devices added up.
        overruns: instructions that took longer than declared.
    """

    step_times_s: tuple[float, ...] = ()
    transfers: int = 0
    transfer_s: float = 0.0
    hidden: float = 1.0
    waited_s: float = 0.0
    overruns: int = 0

    @property
    def median_s(self) -> float:
        """Median step time."""
        return float(np.median(self.step_times_s))


@dataclass(frozen=True, eq=False)
class Study:
    """One model on one topology: its clock, the placements that are compared, and what running them gave.

    Attributes:
        model: its name.
        clock: the simulator, with microbatches.
        placements: op-to-device maps by name.
        turns: what each gave, pipelined.
        naive: what accelerate's map gave as one microbatch.
    """

    model: str
    clock: SimulatedClock
    placements: dict[str, Ints]
    turns: dict[str, Turns]
    naive: Turns | None = None


def study(job: MeasureJob, topology: Topology, *, with_naive: bool) -> Study:
    """Run one model's placements on a topology in turns, and accelerate's naive execution if asked for.

    Raises:
        SegueError: if the model cannot be run, or accelerate is asked for and not installed.
    """
    clock, profile = make_clock(job, topology)
    names = [EQUAL, CONTIGUOUS, *([ACCELERATE] if with_naive else [])]
    placements = {name: plan(name, clock, seed=job.seed).devices for name in names}
    placements[AGENT] = agent_devices(clock, job.seed)
    turns = launch(_work, topology, job, topology, placements, profile)[0]
    if not with_naive:
        return Study(job.model, clock, placements, turns)
    # The same seconds a sample: an op on the whole batch takes as long as on all its microbatches.
    ratio = job.batch_size / clock.sizes[0]
    whole = replace(profile, forward_s=profile.forward_s * ratio, backward_s=profile.backward_s * ratio)
    at_once = {ACCELERATE: placements[ACCELERATE]}
    alone = launch(_work, topology, replace(job, microbatches=1), topology, at_once, whole)[0]
    return Study(job.model, clock, placements, turns, alone[ACCELERATE])


def make_clock(job: MeasureJob, topology: Topology) -> tuple[SimulatedClock, Profile]:
    """The simulator of a job, with op times measured here on one core, and these."""
    # As each worker has: threads that wait for each other would time the wait.
    torch.set_num_threads(1)
    sizes = microbatch_sizes(job.batch_size, job.microbatches)
    example = build_example(
        job.model, sizes[0], seed=job.seed, image_size=job.image_size, sequence_length=job.sequence_length
    )
    program = capture_program(example.step, (example.batch,), name=job.model, prefix="model.")
    model = example.step.model
    values = {name: tensor.detach() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    profile = measure_profile(program, values, program.flatten(example.batch))
    return SimulatedClock(program.graph, topology, make_costs(program.graph, topology, profile), sizes), profile


def agent_devices(clock: SimulatedClock, seed: int) -> Ints:
    """The device of every op as the agent places them, `int64[n]`."""
    plans = cheap_plans(clock, seed, EVALUATIONS)
    start = Placement(plans[0].devices, clock.microbatches)
    starts = {found.planner: found.devices for found in plans[1:]}
    return propose(clock, start, evaluations=EVALUATIONS, seed=seed, starts=starts).placement.devices


def _work(job: MeasureJob, topology: Topology, placements: dict[str, Ints], profile: Profile) -> dict[str, Turns]:
    """A worker's part: every placement has its turn, as often as the job says."""
    example = job.example()
    executor = Executor(
        example.step.model,
        optimizer=torch.optim.AdamW(example.step.model.parameters()),
        loss_fn=example.step.loss_fn,
        example_batch=example.batch,
        topology=topology,
        microbatches=job.microbatches,
        profile=profile,
        seed=job.seed,
    )
    results = dict.fromkeys(placements, Turns())
    for _ in range(job.rounds):
        for name, devices in placements.items():
            executor.apply(Placement(devices, job.microbatches))
            results[name] = _turn(executor, job, example.batch, results[name])
    return results


def _turn(executor: Executor, job: MeasureJob, batch: Any, so_far: Turns) -> Turns:
    times, late = [], 0
    for step in range(job.warm + job.steps):
        before = executor.overruns
        executor.step(batch, timeline=True)
        if step >= job.warm and executor.report is not None:
            times.append(executor.report.step_time_s)
            late += executor.overruns - before
    report = executor.report
    if report is None:
        return so_far
    sent = step_transfers(report.timeline, executor.clock(), executor.placement)
    return Turns(
        step_times_s=(*so_far.step_times_s, *times),
        transfers=len(sent),
        transfer_s=sum(transfer.duration_s for transfer in sent),
        hidden=report.hidden_share or 0.0,
        waited_s=sum(transfer.waited_s for transfer in sent),
        overruns=so_far.overruns + late,
    )


def naive_row(found: Study) -> tuple[Any, ...]:
    """A row of `NAIVE_HEADERS`."""
    turns, alone = found.turns, found.naive or Turns()
    expected = naive(found.clock, found.placements[ACCELERATE]).step_time_s
    return (
        found.model,
        found.clock.topology.name,
        _ms(alone.median_s),
        _ms(expected),
        *(_ms(turns[name].median_s) for name in (ACCELERATE, CONTIGUOUS, AGENT)),
        f"{alone.median_s / turns[CONTIGUOUS].median_s:.2f}",
        f"{alone.median_s / turns[AGENT].median_s:.2f}",
        alone.overruns + sum(turns[name].overruns for name in (ACCELERATE, CONTIGUOUS, AGENT)),
    )


def split_row(found: Study) -> tuple[Any, ...]:
    """A row of `SPLIT_HEADERS`; the gain is what the step is shorter by."""
    equal, measured = found.turns[EQUAL], found.turns[CONTIGUOUS]
    return (
        found.model,
        found.clock.topology.name,
        _ms(equal.median_s),
        _ms(measured.median_s),
        f"{1 - measured.median_s / equal.median_s:.1%}",
        equal.overruns + measured.overruns,
    )


def hidden_rows(found: Study) -> list[tuple[Any, ...]]:
    """Rows of `HIDDEN_HEADERS`, one a placement."""
    return [
        (
            found.model,
            found.clock.topology.name,
            name,
            turns.transfers,
            f"{1e3 * turns.transfer_s:.1f}",
            f"{turns.hidden:.0%}",
            f"{1e3 * turns.waited_s:.1f}",
            _ms(turns.median_s),
        )
        for name, turns in found.turns.items()
    ]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f}"
