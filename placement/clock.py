"""Clocks: what answers "how long does a step take under this placement"."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .costs import Costs, fractions, microbatch_sizes
from .device_loads import DeviceLoads, max_load
from .first_messages import FirstMessages
from .graph import Graph
from .list_schedule import Trace, list_schedule, step_time_and_memory
from .placement import Placement
from .span import Span
from .stage_costs import OpCosts, StageCosts, op_costs, overflow, sum_over_stages
from .stages import Adjacency, Stages, adjacency, build_stages
from .topology import Topology
from .transfers import hidden_share, step_transfers

Floats = NDArray[np.float64]
Pricing = tuple[Adjacency, NDArray[np.bool_], Floats, int, OpCosts, int, DeviceLoads | None]
"""What `price` takes besides the op-to-device map; with `DeviceLoads` it gives the largest load, else the step time."""


@dataclass(frozen=True, eq=False)
class StepReport:
    """One training step under one placement, on either clock.

    Attributes:
        step_time_s: seconds from the first instruction to the last optimizer update.
        busy_s: seconds each device computes, `float64[d]`.
        waiting_s: seconds of the step in which it does not.
        transfer_s: seconds each device's outgoing links are taken.
        peak_bytes: most memory held at once on each device.
        capacity_bytes: what each device has.
        source: `simulated`, `emulated` or `measured`.
        timeline: bars of the step, if asked for.
        ran: with a timeline, the simulator of the same graph, batch and devices, and what the step ran under.
        first_messages: of a `measured` step.
    """

    step_time_s: float
    busy_s: Floats
    transfer_s: Floats
    peak_bytes: Floats
    capacity_bytes: Floats
    source: str
    timeline: tuple[Span, ...] = ()
    ran: tuple["SimulatedClock", Placement] | None = None
    first_messages: FirstMessages | None = None

    @property
    def hidden_share(self) -> float | None:
        """Share of the transfer time in which the receiving device computes; none without a timeline."""
        if self.ran is None or not self.timeline:
            return None
        return hidden_share(step_transfers(self.timeline, *self.ran))

    @property
    def waiting_s(self) -> Floats:
        """Seconds of the step in which each device does not compute."""
        return self.step_time_s - self.busy_s

    @property
    def overflow_bytes(self) -> Floats:
        """Bytes by which each device's memory is exceeded, `float64[d]`."""
        return np.maximum(0.0, self.peak_bytes - self.capacity_bytes)

    @property
    def feasible(self) -> bool:
        """Whether everything fits."""
        return not self.overflow_bytes.any()


class Clock(Protocol):
    """Anything that can time a step under a placement."""

    graph: Graph
    topology: Topology
    microbatches: int

    def step(self, placement: Placement) -> StepReport:
        """Time one step under `placement`."""
        ...


def sum_by(index: NDArray[np.int64], values: Floats, count: int) -> Floats:
    """Sums of `values` that share an index, `float64[count]`."""
    return np.bincount(index, values, count).astype(float, copy=False)


class SimulatedClock:
    """Prices the schedule of a training step.

    Attributes:
        steady: whether the objective is the load of the busiest device, not the time of one step.

    Args:
        graph: ops with costs for one full microbatch.
        topology: devices and links.
        costs: seconds and bytes of every op on every device.
        sizes: samples in each microbatch, the first a full one.
        run_ahead: microbatches a stage may start beyond 1F1B's bound.
        clipping: whether gradients are clipped by their common norm: every device then waits with its update until it has
            heard of the last backward pass of all.
    """

    steady = False

    def __init__(
        self,
        graph: Graph,
        topology: Topology,
        costs: Costs,
        sizes: Sequence[int] = (1,),
        run_ahead: int = 1,
        clipping: bool = False,
    ):
        self.graph = graph
        self.topology = topology
        self.costs = costs
        self.sizes = tuple(sizes)
        self.microbatches = len(self.sizes)
        self.run_ahead = run_ahead
        self.clipping = clipping
        self.edges = adjacency(graph)
        self._ops = op_costs(graph, topology, costs, fractions(self.sizes), clipping)
        self._cut = self.edges, graph.requires_grad.copy(), graph.output_bytes.copy(), topology.num_devices

    @staticmethod
    def for_batch(
        graph: Graph, topology: Topology, costs: Costs, batch_size: int, microbatches: int
    ) -> "SimulatedClock":
        """A clock for batches of `batch_size` cut into `microbatches` parts."""
        return SimulatedClock(graph, topology, costs, microbatch_sizes(batch_size, microbatches))

    def stages(self, devices: NDArray[np.int64]) -> Stages:
        """The stages of an op-to-device map."""
        return build_stages(np.ascontiguousarray(devices), *self._cut)

    def trace(self, devices: NDArray[np.int64]) -> tuple[Stages, Trace]:
        """Stages and times of one step under an op-to-device map."""
        stages = self.stages(devices)
        return stages, list_schedule(stages, self.stage_costs(stages, devices), self.run_ahead)

    def stage_costs(self, stages: Stages, devices: NDArray[np.int64]) -> StageCosts:
        """Costs of the ops, summed over each stage."""
        return sum_over_stages(stages, np.ascontiguousarray(devices), self._ops)

    def step_time(self, devices: NDArray[np.int64]) -> float:
        """Seconds of one step under an op-to-device map, whether or not it fits memory; or of another objective."""
        return self.evaluate(devices)[0]

    def evaluate(self, devices: NDArray[np.int64]) -> tuple[float, float]:
        """Seconds of one step, and bytes by which the tightest device overflows (0 if everything fits)."""
        return price(np.ascontiguousarray(devices), *self.pricing)

    def evaluate_many(self, devices: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """`evaluate` for each row of `int64[k, n]`, `float64[k]` each."""
        return price_many(np.ascontiguousarray(devices), *self.pricing)

    @property
    def pricing(self) -> Pricing:
        """What `price` takes besides the op-to-device map, for compiled searches."""
        return *self._cut, self._ops, self.run_ahead, None

    def _static_bytes(self, devices: NDArray[np.int64]) -> Floats:
        return sum_by(devices, self.costs.state_bytes, self.topology.num_devices)

    def step(self, placement: Placement, timeline: bool = False) -> StepReport:
        """Price one step; with `timeline`, keep every bar of it."""
        devices = placement.devices
        stages = self.stages(devices)
        costs = self.stage_costs(stages, devices)
        trace = list_schedule(stages, costs, self.run_ahead)
        return StepReport(
            step_time_s=trace.step_time,
            busy_s=trace.busy,
            transfer_s=trace.transfer,
            peak_bytes=self._static_bytes(devices) + trace.peak_live_bytes + costs.working_bytes,
            capacity_bytes=self.topology.memory_bytes,
            source="simulated",
            timeline=tuple(self._spans(stages, trace)) if timeline else (),
            ran=(self, placement) if timeline else None,
        )

    def _spans(self, stages: Stages, trace: Trace) -> list[Span]:
        names = [device.name for device in self.topology.devices]
        spans = []
        for stage, device in enumerate(stages.device):
            op = self.graph.names[stages.ops[stages.op_start[stage]]]
            for micro in range(self.microbatches):
                for which, letter in enumerate("FB"):
                    if trace.start[stage, micro, which] >= 0:
                        label = f"{letter}{micro} {op}"
                        start, end = trace.start[stage, micro, which], trace.end[stage, micro, which]
                        spans.append(Span(names[device], label, float(start), float(end)))
        for offset, starts, others, letter in (
            (0, stages.succ_start, stages.succ, "f"),
            (len(stages.succ), stages.grad_start, stages.grad, "b"),
        ):
            source = np.repeat(np.arange(len(stages.device)), np.diff(starts))
            for j, other in enumerate(others):
                lane = f"{names[stages.device[source[j]]]}->{names[stages.device[other]]}"
                for micro in range(self.microbatches):
                    begin = trace.message_start[offset + j, micro]
                    if begin >= 0:
                        end = trace.message_end[offset + j, micro]
                        spans.append(Span(lane, f"{letter}{micro}", float(begin), float(end)))
        for device, name in enumerate(names):
            mine = stages.device == device
            if mine.any():
                start, compute = trace.update_start[device], (trace.end[mine] - trace.start[mine]).sum()
                spans.append(Span(name, "update", float(start), float(start + trace.busy[device] - compute)))
        return sorted(spans, key=lambda span: (span.start_s, span.lane, span.name))


@njit(cache=True)
def price(
    devices: NDArray[np.int64],
    edges: Adjacency,
    requires_grad: NDArray[np.bool_],
    output_bytes: Floats,
    num_devices: int,
    ops: OpCosts,
    run_ahead: int,
    loads: DeviceLoads | None,
) -> tuple[float, float]:
    """What is to be minimised, in seconds, and bytes too many, in one go."""
    if loads is not None:
        return max_load(devices, loads)
    stages = build_stages(devices, edges, requires_grad, output_bytes, num_devices)
    costs = sum_over_stages(stages, devices, ops)
    seconds, live_bytes = step_time_and_memory(stages, costs, run_ahead)
    return seconds, overflow(devices, live_bytes + costs.working_bytes, ops)


@njit(cache=True)
def price_many(
    devices: NDArray[np.int64],
    edges: Adjacency,
    requires_grad: NDArray[np.bool_],
    output_bytes: Floats,
    num_devices: int,
    ops: OpCosts,
    run_ahead: int,
    loads: DeviceLoads | None,
) -> tuple[Floats, Floats]:
    """`price` of each row, compiled."""
    seconds, overflows = np.empty(devices.shape[0]), np.empty(devices.shape[0])
    for row in range(devices.shape[0]):
        seconds[row], overflows[row] = price(
            devices[row], edges, requires_grad, output_bytes, num_devices, ops, run_ahead, loads
        )
    return seconds, overflows
