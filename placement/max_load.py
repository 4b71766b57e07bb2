"""`MaxLoadClock`: the load of the busiest device, which is what a pipeline that never runs dry takes for one step."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .clock import SimulatedClock, StepReport
from .compiled import hot
from .costs import Costs
from .graph import Graph
from .placement import Placement
from .topology import Topology

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class _Work(NamedTuple):
    """What a step costs, and room to add it up in."""

    seconds: Floats  # [n, c] of an op in a whole step, its update included
    device_class: Ints
    held_bytes: Floats  # [n]
    out_start: Ints
    targets: Ints
    sent_bytes: Floats  # [n] of an op's value in a whole step
    messages: float
    differentiated: NDArray[np.bool_]
    latency: Floats
    seconds_per_byte: Floats
    busy: Floats  # [d] room, as the next two
    moving: Floats
    held: Floats
    seen: Ints  # [d]


class MaxLoadClock(SimulatedClock):
    """Prices a placement by the largest load of a device: steady-state throughput, not the time of one step.

    A device's load is the seconds in which a step keeps it busy: its ops forward, backward and update, and its messages,
    one after the other: each value once to every device that reads it, each gradient once back, charged to both ends (the
    objective of Tarnawski et al., NeurIPS 2020, on unequal devices and links). Overheads of instructions are left out. A
    device must hold its ops' state and what they save for as many microbatches as 1F1B keeps alive in a pipeline over all
    devices.
    """

    def __init__(self, graph: Graph, topology: Topology, costs: Costs, sizes: Sequence[int] = (1,), run_ahead: int = 1):
        super().__init__(graph, topology, costs, sizes, run_ahead)
        samples = sum(self.sizes) / self.sizes[0]
        live = min(self.microbatches, topology.num_devices + run_ahead)
        count = topology.num_devices
        self._work = _Work(
            samples * (costs.forward_s + costs.backward_s) + costs.update_s,
            costs.device_class.astype(np.int64),
            costs.state_bytes + live * graph.saved_bytes,
            self.edges.out_start,
            self.edges.targets,
            samples * graph.output_bytes,
            float(self.microbatches),
            graph.requires_grad,
            topology.latency_s,
            topology.seconds_per_byte,
            np.zeros(count),
            np.zeros(count),
            np.zeros(count),
            np.zeros(count, np.int64),
        )

    def evaluate(self, devices: Ints) -> tuple[float, float]:
        """The largest load in seconds, and bytes by which the tightest device overflows (0 if everything fits)."""
        return _max_load(devices, self._work, self.topology.memory_bytes)

    def evaluate_many(self, devices: Ints) -> tuple[Floats, Floats]:
        """`evaluate` for each row of `int64[k, n]`."""
        loads, overflow = np.zeros(len(devices)), np.zeros(len(devices))
        _max_loads(devices, self._work, self.topology.memory_bytes, loads, overflow)
        return loads, overflow

    def step(self, placement: Placement, timeline: bool = False) -> StepReport:
        """Price a placement; `step_time_s` is the largest load, and there is no timeline of a steady state."""
        del timeline
        load, _ = self.evaluate(placement.devices)
        return StepReport(
            step_time_s=load,
            busy_s=self._work.busy.copy(),
            transfer_s=self._work.moving.copy(),
            peak_bytes=self._work.held.copy(),
            capacity_bytes=self.topology.memory_bytes,
            source="simulated",
        )


@hot
def _max_loads(devices: Ints, work: _Work, memory_bytes: Floats, loads: Floats, overflow: Floats) -> None:
    for row in range(devices.shape[0]):
        loads[row], overflow[row] = _max_load(devices[row], work, memory_bytes)


@hot
def _max_load(devices: Ints, work: _Work, memory_bytes: Floats) -> tuple[float, float]:
    for device in range(memory_bytes.shape[0]):
        work.busy[device] = work.moving[device] = work.held[device] = 0.0
        work.seen[device] = -1
    for op in range(devices.shape[0]):
        own = devices[op]
        work.busy[own] += work.seconds[op, work.device_class[own]]
        work.held[own] += work.held_bytes[op]
        for edge in range(work.out_start[op], work.out_start[op + 1]):
            other = devices[work.targets[edge]]
            if other == own or work.seen[other] == op:
                continue
            work.seen[other] = op
            size = work.sent_bytes[op]
            seconds = work.messages * work.latency[own, other] + size * work.seconds_per_byte[own, other]
            if work.differentiated[op]:
                seconds += work.messages * work.latency[other, own] + size * work.seconds_per_byte[other, own]
            work.moving[own] += seconds
            work.moving[other] += seconds
    load: float = 0.0
    overflow: float = 0.0
    for device in range(memory_bytes.shape[0]):
        load = max(load, work.busy[device] + work.moving[device])
        overflow = max(overflow, work.held[device] - memory_bytes[device])
    return load, overflow
