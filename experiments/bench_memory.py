"""Peak memory of each device in a step: what is truly allocated, beside what the simulator predicts.

Workers are CPU cores; torch's CPU allocator reports every allocation and release to the profiler, also those inside of
kernels and of autograd. What a worker holds between steps (parameters, buffers and optimizer state that it owns) is added,
and so is the memory shared with other workers that messages to it have lain in since the last move. A worker's own copy of
the user's model and the batch are no part of it: on a GPU they stay in host memory.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from ..placement.executor import Executor, launch
from ..placement.placement import Placement
from ..placement.planners import plan
from ..placement.topology import Device, Topology, uniform_links
from .bench_emulated import AGENT, agent_devices
from .measure import MeasureJob

HEADERS = ("model", "placement", "device", "state (MiB)", "predicted", "held", "held/predicted", "workspace", "shared")
HOLDER_HEADERS = ("model", "placement", "device", "allocated by (MiB at the peak)")
WARM = 2
"""Steps before the one that counts: the optimizer's state is made in the first."""

MOST_NAMED = 6
"""Kinds of calls whose allocations are told."""


@dataclass(frozen=True)
class Peak:
    """One device's memory in a step, bytes.

    Attributes:
        state: parameters, buffers and optimizer state, there all the time.
        predicted: the simulator's peak.
        held: what was truly held at once, state and shared memory included.
        shared: what messages to it have lain in.
        lasting: what was held without what one call into torch allocates and releases again.
        holders: what is allocated at the peak besides the state, by the call that did.
    """

    state: float
    predicted: float
    held: float
    shared: float
    lasting: float
    holders: dict[str, float]


class Allocation(NamedTuple):
    """A piece of memory: allocated and released when (position among all such events), bytes, and by which calls."""

    begin: int
    end: int
    size: int
    caller: str
    temporary: bool


def measure_peaks(job: MeasureJob, devices: int, planners: Sequence[str]) -> dict[tuple[str, str], Peak]:
    """Peaks by planner and device of one step under each planner's placement, in workers of its own."""
    names = [f"core{i}" for i in range(devices)]
    cores = tuple(Device(name, "cpu", 64e9) for name in names)
    topology = Topology("cores", cores, uniform_links(names, 1e-4, 1e9))
    return {
        (planner, name): peak
        for planner in planners
        for name, peak in zip(names, launch(_work, topology, job, topology, planner), strict=True)
    }


def memory_rows(model: str, peaks: dict[tuple[str, str], Peak]) -> list[tuple[Any, ...]]:
    """Rows of `HEADERS`."""
    return [
        (
            model,
            *where,
            *(_mib(value) for value in (peak.state, peak.predicted, peak.held)),
            f"{peak.held / peak.predicted:.2f}" if peak.predicted else "",
            _mib(peak.held - peak.lasting),
            _mib(peak.shared),
        )
        for where, peak in peaks.items()
    ]


def holder_rows(model: str, peaks: dict[tuple[str, str], Peak]) -> list[tuple[Any, ...]]:
    """Rows of `HOLDER_HEADERS`."""
    rows = []
    for where, peak in peaks.items():
        most = sorted(peak.holders.items(), key=lambda holder: -holder[1])[:MOST_NAMED]
        rows.append((model, *where, ", ".join(f"{name} {_mib(size)}" for name, size in most)))
    return rows


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:.1f}"


def _work(job: MeasureJob, topology: Topology, planner: str) -> Peak:
    """A worker's part: its own peak."""
    example = job.example()
    executor = Executor(
        example.step.model,
        optimizer=torch.optim.AdamW(example.step.model.parameters()),
        loss_fn=example.step.loss_fn,
        example_batch=example.batch,
        topology=topology,
        microbatches=job.microbatches,
    )
    executor.apply(Placement(_devices(planner, executor, job.seed), job.microbatches))
    for _ in range(WARM):
        executor.step(example.batch)
    return _peak(executor, example.batch)


def _devices(planner: str, executor: Executor, seed: int) -> NDArray[np.int64]:
    """Where every op is to be, on worker 0, whose placement counts."""
    if executor.rank:
        return executor.placement.devices
    clock = executor.clock()
    return agent_devices(clock, seed) if planner == AGENT else plan(planner, clock, seed=seed).devices


def _peak(executor: Executor, batch: Any) -> Peak:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        executor.step(batch)
    pieces, changes = find_allocations(profiler)
    # Gradients are freed by the update: between steps the state is three of the four parts that are planned for.
    graph, mine = executor.graph, executor.placement.devices == executor.rank
    state = float((executor.clock().costs.state_bytes - graph.parameter_bytes)[mine].sum())
    held = np.cumsum(changes)
    top = int(held.argmax())
    holders: dict[str, float] = {}
    for piece in pieces:
        if piece.begin <= top < piece.end:
            holders[piece.caller] = holders.get(piece.caller, 0.0) + piece.size
    temporary = np.zeros(len(changes))
    for piece in pieces:
        if piece.temporary:
            temporary[piece.begin] -= piece.size
            temporary[piece.end] += piece.size
    constant = state + executor.line_bytes
    return Peak(
        state=state,
        predicted=float(executor.clock().step(executor.placement).peak_bytes[executor.rank]),
        held=constant + float(held[top]),
        shared=float(executor.line_bytes),
        lasting=constant + float(np.cumsum(changes + temporary).max(initial=0)),
        holders=holders,
    )


def find_allocations(profiler: Any) -> tuple[list[Allocation], NDArray[np.float64]]:
    """Every piece of memory allocated while the profiler ran, and the bytes that each event changed the total by.

    What was there before and is released meanwhile changes the total, too, but is no piece.
    """
    events = sorted(
        _memory_events(profiler.profiler.kineto_results.experimental_event_tree(), None), key=lambda e: e[0]
    )
    changes = np.array([size for _, _, size, _ in events], float)
    alive: dict[int, tuple[int, int, Any]] = {}
    pieces = []
    for position, (_, address, size, caller) in enumerate(events):
        if size > 0:
            alive[address] = (position, size, caller)
        elif address in alive:
            begin, size, made_by = alive.pop(address)
            pieces.append(Allocation(begin, position, size, _name(made_by), made_by is not None and made_by is caller))
    rest = [Allocation(begin, len(events), size, _name(made_by), False) for begin, size, made_by in alive.values()]
    return pieces + rest, changes


def _memory_events(tree: Iterable[Any], caller: Any) -> Iterable[tuple[int, int, int, Any]]:
    """Time, address, bytes (released: negative) and outermost call of every allocation in an event tree."""
    for event in tree:
        kind, details = event.typed
        if kind == _EventType.Allocation:
            yield event.start_time_ns, details.ptr, details.alloc_size, caller
        else:
            yield from _memory_events(event.children, caller if caller is not None else event)


def _name(caller: Any) -> str:
    return "python" if caller is None else caller.name.removeprefix("autograd::engine::evaluate_function: ")
