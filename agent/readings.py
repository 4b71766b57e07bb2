"""What a measured step says about the factors: busy seconds of devices or stages, seconds of links."""

from collections.abc import Sequence
from copy import copy
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..placement.clock import SimulatedClock, Span, StepReport
from ..placement.coarsen import coarsen
from ..placement.costs import fractions
from ..placement.graph import Graph
from ..placement.placement import Placement
from ..placement.stages import Stages
from ..placement.topology import Topology
from .corrections import Readings
from .message_times import believed_s, measured_s, message_noise, timed_links

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# How far a factor is expected to be off: standard deviations of its logarithm.
GROUP_SPREAD, DEVICE_SPREAD, NETWORK_SPREAD, LINK_SPREAD = 0.35, 1.0, 0.5, 0.5
# Relative error of a measured second.
NOISE = 0.03
# Up to so many links have a factor each; of more, those that are equal share one.
MOST_LINKS = 128


class Factors:
    """Which factor multiplies what: one for every group of ops, every device and every link, and one for all links.

    A device or link whose pace changes is renewed: it gets another factor, which steps measured earlier do not bear on.

    Args:
        graph: the ops.
        topology: devices and links.
        max_groups: most groups of ops.

    Attributes:
        group_of: factor of every op, `int64[n]`.
        device: present factor of every device, `int64[d]`.
        link: present factor of every link by its ends, `int64[d, d]`; -1 on the diagonal.
        network: the factor that all links have in common.
        spread: prior standard deviation of every factor's logarithm, `float64[k]`.
    """

    def __init__(self, graph: Graph, topology: Topology, max_groups: int):
        self.group_of = coarsen(graph, max_groups).group_of
        groups, devices = int(self.group_of.max()) + 1, topology.num_devices
        self.device = groups + np.arange(devices)
        self.network = groups + devices
        classes = _link_classes(topology)
        self.link = np.where(classes >= 0, self.network + 1 + classes, -1)
        counts = (groups, devices, 1, int(classes.max(initial=-1)) + 1)
        self.spread = np.repeat([GROUP_SPREAD, DEVICE_SPREAD, NETWORK_SPREAD, LINK_SPREAD], counts)

    def in_use(self, values: Floats) -> Floats:
        """By what the costs of every op, device and link are multiplied now, one after the other."""
        links = values[self.network] * values[self.link[self.link >= 0]]
        return np.concatenate([values[self.group_of], values[self.device], links])

    def renew_devices(self, factors: Ints) -> None:
        """Give the devices that have these factors others, of which nothing is known."""
        for factor in factors:
            self.device[self.device == factor] = self._new(DEVICE_SPREAD)

    def renew_links(self, factors: Ints) -> None:
        """Give the links that have these factors others, of which nothing is known."""
        for factor in factors:
            self.link[self.link == factor] = self._new(LINK_SPREAD)

    def without(self, device: int) -> "Factors":
        """The same factors when a device has gone."""
        rest = copy(self)
        rest.device = np.delete(self.device, device)
        rest.link = np.delete(np.delete(self.link, device, axis=0), device, axis=1)
        return rest

    def _new(self, spread: float) -> int:
        self.spread = np.append(self.spread, spread)
        return len(self.spread) - 1


def _link_classes(topology: Topology) -> Ints:
    """A number for every link, -1 on the diagonal, `int64[d, d]`."""
    off = ~np.eye(topology.num_devices, dtype=bool)
    classes = np.full(off.shape, -1, np.int64)
    if off.sum() <= MOST_LINKS:
        classes[off] = np.arange(off.sum())
    else:
        pairs = np.stack([topology.latency_s[off], topology.seconds_per_byte[off]], axis=1)
        classes[off] = np.unique(pairs, axis=0, return_inverse=True)[1].ravel()
    return classes


class StepParts(NamedTuple):
    """A step as the simulator plays it with costs as they were first believed, in seconds.

    Attributes:
        stages: of the placement.
        compute: forward and backward of every op in a whole step, `float64[n]`.
        stage: of every stage, its overheads and messages included, `float64[s]`.
        update: of every device, `float64[d]`.
        link: of every link, by its ends, `float64[d, d]`.
    """

    stages: Stages
    compute: Floats
    stage: Floats
    update: Floats
    link: Floats


def step_parts(clock: SimulatedClock, placement: Placement) -> StepParts:
    """Play a step and sum it up by stages, devices and links."""
    devices, costs, count = placement.devices, clock.costs, clock.topology.num_devices
    ops, column = np.arange(len(devices)), costs.device_class[devices]
    stages, trace = clock.trace(devices)
    source = np.concatenate(
        [np.repeat(np.arange(len(stages.device)), np.diff(s)) for s in (stages.succ_start, stages.grad_start)]
    )
    pair = stages.device[source] * count + stages.device[np.concatenate([stages.succ, stages.grad])]
    seconds = np.where(trace.message_start >= 0, trace.message_end - trace.message_start, 0.0).sum(axis=1)
    return StepParts(
        stages=stages,
        compute=(costs.forward_s + costs.backward_s)[ops, column] * fractions(clock.sizes).sum(),
        stage=(trace.end - trace.start).sum(axis=(1, 2)),
        update=np.bincount(devices, costs.update_s[ops, column], count).astype(np.float64),
        link=np.bincount(pair, seconds, count * count).astype(np.float64).reshape(count, count),
    )


def device_readings(
    parts: StepParts,
    devices: Ints,
    reports: Sequence[StepReport],
    clock: SimulatedClock,
    factors: Factors,
    grain: float,
) -> Readings:
    """Busy seconds of every device that computes: the median of some steps."""
    count = clock.topology.num_devices
    row_of_stage = parts.stages.device
    busy = np.median([report.busy_s for report in reports], axis=0)
    return _compute(parts, devices, row_of_stage, np.arange(count), parts.update, busy, factors, grain)


def stage_readings(
    parts: StepParts,
    devices: Ints,
    reports: Sequence[StepReport],
    clock: SimulatedClock,
    factors: Factors,
    grain: float,
) -> Readings:
    """Seconds of every stage, from the timelines of some steps: their medians."""
    count = len(parts.stage)
    measured = np.median([_stage_seconds(report.timeline, parts.stages, clock) for report in reports], axis=0)
    own = np.arange(count)
    return _compute(parts, devices, own, parts.stages.device, np.zeros(count), measured, factors, grain)


def _stage_seconds(timeline: Sequence[Span], stages: Stages, clock: SimulatedClock) -> Floats:
    seconds = np.zeros(len(stages.device))
    for span in timeline:
        op = clock.graph.index.get(span.name.partition(" ")[2])
        if op is not None and span.lane in clock.topology.index:
            seconds[stages.stage_of[op]] += span.end_s - span.start_s
    return seconds


def _compute(
    parts: StepParts,
    devices: Ints,
    row_of_stage: Ints,
    device_of_row: Ints,
    update: Floats,
    measured: Floats,
    factors: Factors,
    grain: float,
) -> Readings:
    rows = len(device_of_row)
    row_of_op = row_of_stage[parts.stages.stage_of]
    seconds = np.zeros((rows, len(factors.spread)))
    np.add.at(seconds, (row_of_op, factors.group_of), parts.compute)
    total = np.bincount(row_of_stage, parts.stage, rows)
    fixed = np.maximum(0.0, total - seconds.sum(axis=1))
    shared = factors.device[device_of_row]
    return _readings(Readings(seconds, shared, update, fixed, measured, np.full(rows, NOISE)), grain)


def link_readings(
    parts: StepParts, reports: Sequence[StepReport], clock: SimulatedClock, factors: Factors, grain: float
) -> Readings:
    """Seconds of the links: one by one where the steps' timelines show them, else of each device's outgoing ones.

    Real devices count what they waited for messages; there, those that the first messages were on their way.
    """
    if not all(counts_transfers(report) for report in reports):
        return _message_readings(reports, clock.topology, factors, grain)
    count = len(parts.update)
    busy = np.array([_link_seconds(report, clock.topology) for report in reports])
    alone = busy.any()
    measured = np.median(busy if alone else [report.transfer_s for report in reports], axis=0)
    row = np.arange(count * count) if alone else np.repeat(np.arange(count), count)
    rows = count * count if alone else count
    used = np.flatnonzero(parts.link.ravel() > 0)
    seconds = np.zeros((rows, len(factors.spread)))
    np.add.at(seconds, (row[used], factors.link.ravel()[used]), parts.link.ravel()[used])
    empty, shared = np.zeros(rows), np.full(rows, factors.network)
    return _readings(Readings(seconds, shared, empty, empty, measured.ravel(), np.full(rows, NOISE)), grain)


def _message_readings(reports: Sequence[StepReport], topology: Topology, factors: Factors, grain: float) -> Readings:
    together = timed_links(reports, topology)
    rows = len(together)
    seconds = np.zeros((rows, len(factors.spread)))
    measured = np.zeros(rows)
    for row, links in enumerate(together):
        for source, target in links:
            seconds[row, factors.link[source, target]] += believed_s((source, target), reports[-1], topology)
        measured[row] = np.median([measured_s(links, report) for report in reports])
    empty, shared = np.zeros(rows), np.full(rows, factors.network)
    return _readings(Readings(seconds, shared, empty, empty, measured, message_noise(measured)), grain)


def counts_transfers(report: StepReport) -> bool:
    """Whether transfer seconds are what links were taken; real devices count what they waited for messages."""
    return report.source != "measured"


def _link_seconds(report: StepReport, topology: Topology) -> Floats:
    seconds = np.zeros((topology.num_devices, topology.num_devices))
    for span in report.timeline:
        source, arrow, target = span.lane.partition("->")
        if arrow and source in topology.index and target in topology.index:
            seconds[topology.index[source], topology.index[target]] += span.end_s - span.start_s
    return seconds


def _readings(readings: Readings, grain: float) -> Readings:
    """Those that say something, with ratios of measured to believed rounded to `grain`."""
    believed = readings.fixed + readings.alone + readings.seconds.sum(axis=1)
    kept = (readings.seconds.sum(axis=1) > 1e-9) & (readings.measured > 0)
    columns: Any = [column[kept] for column in readings]
    readings = Readings(*columns)
    ratio = np.log(readings.measured / believed[kept])
    if grain:
        ratio = np.round(ratio / grain) * grain
    noise = np.sqrt(readings.noise**2 + grain**2 / 12)
    return readings._replace(measured=believed[kept] * np.exp(ratio), noise=noise)
