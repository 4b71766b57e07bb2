"""Warnings about a step: devices whose memory is (nearly) full, and links that devices wait for."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .clock import SimulatedClock, Span, StepReport, sum_by
from .costs import fractions
from .list_schedule import BACKWARD, FORWARD
from .placement import Placement
from .stages import Stages, gradient_slots
from .transfers import Ran, Transfer, find_instructions, step_transfers

NEARLY_FULL = 0.9
"""Share of a device's memory from which there is a warning."""

LONG_WAIT = 0.2
"""Share of a step that a device may wait for the messages of one link before there is a warning."""

MOST_NAMED = 3
"""Ops or values that a warning names."""


@dataclass(frozen=True)
class MemoryPressure:
    """A device whose memory is full or nearly so.

    Attributes:
        device: its name.
        peak_bytes: most bytes held at once.
        capacity_bytes: what it has.
        holders: op names and the bytes that each holds at that moment, most first.
    """

    device: str
    peak_bytes: float
    capacity_bytes: float
    holders: tuple[tuple[str, float], ...]

    @property
    def overflows(self) -> bool:
        """Whether it is more than there is."""
        return self.peak_bytes > self.capacity_bytes

    @property
    def subject(self) -> str:
        """What the warning is about, whatever its figures."""
        return f"memory of {self.device} {'overflows' if self.overflows else 'nearly full'}"

    def __str__(self) -> str:
        return (
            f"{self.subject}: {_size(self.peak_bytes)} of {_size(self.capacity_bytes)} "
            f"({self.peak_bytes / self.capacity_bytes:.0%}); most is held by {_listed(self.holders)}"
        )


@dataclass(frozen=True)
class LinkBottleneck:
    """A link whose messages a device waits for.

    Attributes:
        source: name of the device that sends.
        target: name of the device that waits.
        waited_s: seconds of the step in which it does nothing else.
        step_time_s: seconds of the step.
        step_bytes: bytes that the link carries in a step.
        values: what it carries most of, a name and bytes a step each, most first.
        clock: where the times come from: `simulated`, `emulated` or `measured`.
    """

    source: str
    target: str
    waited_s: float
    step_time_s: float
    step_bytes: float
    values: tuple[tuple[str, float], ...]
    clock: str

    @property
    def subject(self) -> str:
        """What the warning is about, whatever its figures."""
        return f"link {self.source}->{self.target} is a bottleneck"

    def __str__(self) -> str:
        return (
            f"{self.subject}: {self.target} waits for it {self.waited_s * 1e3:.1f} of {self.step_time_s * 1e3:.1f} ms "
            f"({self.waited_s / self.step_time_s:.0%}, {self.clock}); of {_size(self.step_bytes)} a step most is "
            f"{_listed(self.values)}"
        )


def watch(
    report: StepReport, clock: SimulatedClock, placement: Placement
) -> tuple[MemoryPressure | LinkBottleneck, ...]:
    """All warnings about a step: memory first, then links, the worst first.

    Args:
        report: the step, on any clock; without a timeline the clock's own stands for it.
        clock: graph, topology and batch of the run.
        placement: what the step ran under.

    Raises:
        SegueError: if the report's timeline is of another placement.
    """
    return (*memory_pressure(report, clock, placement), *link_bottlenecks(report, clock, placement))


def nearly_full(report: StepReport) -> NDArray[np.int64]:
    """Devices that hold at least `NEARLY_FULL` of their memory, the fullest first."""
    share = report.peak_bytes / report.capacity_bytes
    return np.array([d for d in np.argsort(-share, kind="stable") if share[d] >= NEARLY_FULL], np.int64)


def memory_pressure(report: StepReport, clock: SimulatedClock, placement: Placement) -> tuple[MemoryPressure, ...]:
    """Devices whose memory is full or nearly so, with the ops that hold most of it."""
    full = nearly_full(report)
    if not len(full):
        return ()
    held = held_bytes(_timeline(report, clock, placement), clock, placement)
    found = []
    for device in full.tolist():
        mine = np.flatnonzero((placement.devices == device) & (held > 0))
        most = mine[np.argsort(-held[mine], kind="stable")][:MOST_NAMED]
        found.append(
            MemoryPressure(
                device=clock.topology.devices[device].name,
                peak_bytes=float(report.peak_bytes[device]),
                capacity_bytes=float(report.capacity_bytes[device]),
                holders=tuple((clock.graph.names[op], float(held[op])) for op in most),
            )
        )
    return tuple(found)


def held_bytes(timeline: Sequence[Span], clock: SimulatedClock, placement: Placement) -> NDArray[np.float64]:
    """Bytes that each op holds when its device holds most: its state, and what it saved of the microbatches under way.

    Returns:
        `float64[n]`; what a stage received is not counted, since no op of its device made it.
    """
    stages = clock.stages(placement.devices)
    live = clock.stage_costs(stages, placement.devices).live_bytes
    fraction = fractions(clock.sizes)
    under_way = np.zeros((clock.topology.num_devices, len(stages.device)))
    now, most = under_way.copy(), np.full(clock.topology.num_devices, -1.0)
    for _, starts, ran in sorted(_changes(timeline, clock, stages)):
        now[ran.device, ran.stage] += fraction[ran.micro] if starts else -fraction[ran.micro]
        holds = float(now[ran.device] @ live)
        if holds > most[ran.device]:
            most[ran.device], under_way[ran.device] = holds, now[ran.device]
    micros = under_way.sum(axis=0)
    return clock.costs.state_bytes + micros[stages.stage_of] * clock.graph.saved_bytes


def _changes(timeline: Sequence[Span], clock: SimulatedClock, stages: Stages) -> Iterator[tuple[float, bool, Ran]]:
    """Moments at which a stage begins or ends to hold a microbatch; ends come before begins."""
    for ran in find_instructions(timeline, clock, stages):
        if ran.direction == FORWARD:
            yield ran.start_s, True, ran
        if ran.direction == BACKWARD or not stages.has_backward[ran.stage]:
            yield ran.end_s, False, ran


def link_bottlenecks(report: StepReport, clock: SimulatedClock, placement: Placement) -> tuple[LinkBottleneck, ...]:
    """Links that a device waits for during `LONG_WAIT` of the step or more, with the values that take most of them."""
    timeline = _timeline(report, clock, placement)
    seconds = report.step_time_s if report.timeline else max(span.end_s for span in timeline)
    links: dict[tuple[int, int], list[Transfer]] = defaultdict(list)
    for message in step_transfers(timeline, clock, placement):
        links[message.source, message.target].append(message)
    found = []
    for (source, target), messages in links.items():
        waited = sum(message.waited_s for message in messages)
        if waited >= LONG_WAIT * seconds:
            found.append(
                LinkBottleneck(
                    source=clock.topology.devices[source].name,
                    target=clock.topology.devices[target].name,
                    waited_s=waited,
                    step_time_s=seconds,
                    step_bytes=sum(message.num_bytes for message in messages),
                    values=tuple(carried_values(clock, placement, source, target)[:MOST_NAMED]),
                    clock=report.source if report.timeline else "simulated",
                )
            )
    return tuple(sorted(found, key=lambda bottleneck: -bottleneck.waited_s))


def carried_values(clock: SimulatedClock, placement: Placement, source: int, target: int) -> list[tuple[str, float]]:
    """What a link carries in a step: op names (`gradient of` one) and bytes, most first."""
    graph, devices = clock.graph, placement.devices
    count, batch = graph.num_ops, fractions(clock.sizes).sum()
    # The clock's own order of edges, which the slots of gradients are in.
    makers = np.repeat(np.arange(count), np.diff(clock.edges.out_start))
    readers = clock.edges.targets
    there = (devices[makers] == source) & (devices[readers] == target)
    back = (devices[makers] == target) & (devices[readers] == source)
    back &= graph.requires_grad[makers] & graph.requires_grad[readers]
    slots = gradient_slots(clock.edges, clock.stages(devices).stage_of, graph.requires_grad)
    values = np.bincount(makers[there], minlength=count).astype(bool) * graph.output_bytes * batch
    gradients = sum_by(makers[back], slots[back].astype(float), count) * graph.output_bytes * batch
    named = [(graph.names[op], float(values[op])) for op in np.flatnonzero(values)]
    named += [(f"gradient of {graph.names[op]}", float(gradients[op])) for op in np.flatnonzero(gradients)]
    return sorted(named, key=lambda value: -value[1])


def _timeline(report: StepReport, clock: SimulatedClock, placement: Placement) -> tuple[Span, ...]:
    return report.timeline or clock.step(placement, timeline=True).timeline


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes >= 2**20 / 10 else f"{num_bytes / 2**10:.1f} KiB"


def _listed(named: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{name} ({_size(num_bytes)})" for name, num_bytes in named) or "no op"
