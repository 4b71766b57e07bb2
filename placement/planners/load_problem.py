"""`LoadProblem`: what the exact planner minimises, the largest load of a device, and how a clock's costs come to it."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..clock import SimulatedClock, sum_by
from ..costs import fractions
from ..graph import Graph
from ..max_load import MaxLoadClock
from ..objectives import ROUNDING
from ..workload import CPU
from ..workload_clock import WorkloadClock
from .plan import Devices, Floats

Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class LoadProblem:
    """Ops to be placed so that the largest load of a device is least; `n` ops, `d` devices.

    A device's load is the seconds of its ops, and what it pays for the values that cross to and from it.

    Attributes:
        graph: edges and colocation groups.
        seconds: of each op on each device, infinite where it cannot run, `float64[n, d]`.
        held_bytes: of each op, `float64[n]`.
        capacity_bytes: of each device, `float64[d]`.
        pair_s: seconds that a value from device `a` with a reader on device `b` costs both of them, `float64[n, d, d]`.
        host_s: seconds that a value costs its own device once if it is read elsewhere, and each other device that reads it,
            `float64[n, d]`.
        present_s: seconds that a device pays once if it runs any op of a set: pairs of `bool[n]` and `float64[d]`.
    """

    graph: Graph
    seconds: Floats
    held_bytes: Floats
    capacity_bytes: Floats
    pair_s: Floats | None = None
    host_s: Floats | None = None
    present_s: tuple[tuple[Bools, Floats], ...] = ()

    def loads(self, devices: Devices) -> Floats:
        """Load of each device under an op-to-device map, in seconds, `float64[d]`."""
        count = len(self.capacity_bytes)
        loads = sum_by(devices, self.seconds[np.arange(len(devices)), devices], count)
        for ops, seconds in self.present_s:
            present = np.unique(devices[ops])
            loads[present] += seconds[present]
        source, target = self.graph.edges.T
        crossing = devices[source] != devices[target]
        sent = np.unique(np.stack([source, devices[target]], axis=1)[crossing], axis=0)
        op, reader = sent[:, 0], sent[:, 1]
        if self.pair_s is not None:
            seconds = self.pair_s[op, devices[op], reader]
            loads += sum_by(devices[op], seconds, count) + sum_by(reader, seconds, count)
        if self.host_s is not None:
            once = np.unique(op)
            loads += sum_by(devices[once], self.host_s[once, devices[once]], count)
            loads += sum_by(reader, self.host_s[op, reader], count)
        return loads

    def with_share(self, share: float) -> "LoadProblem":
        """The same problem with so much of each device's memory."""
        return replace(self, capacity_bytes=share * self.capacity_bytes)


def is_exact(clock: SimulatedClock) -> bool:
    """Whether the largest load of `load_problem(clock)` is what the clock minimises, memory included."""
    return isinstance(clock, MaxLoadClock) or (isinstance(clock, WorkloadClock) and clock.objective == "max-load")


def load_problem(clock: SimulatedClock) -> LoadProblem:
    """The problem whose optimum is placed: the clock's own where `is_exact`, else a model of a pipeline that is never dry.

    In the model a device pays for what it sends and receives as a `MaxLoadClock` counts it, and one instruction each way for
    every value that it receives, as a value from elsewhere opens a stage. It holds as many microbatches as `heft` assumes.
    """
    if isinstance(clock, WorkloadClock):
        return _workload_problem(clock)
    graph, costs, topology = clock.graph, clock.costs, clock.topology
    samples = float(fractions(clock.sizes).sum())
    latency, per_byte = topology.latency_s, topology.seconds_per_byte
    grad = graph.requires_grad[:, None, None]
    size = samples * graph.output_bytes[:, None, None]
    pair = clock.microbatches * latency + size * per_byte
    pair = pair + grad * (clock.microbatches * latency.T + size * per_byte.T)
    ahead = topology.num_devices if isinstance(clock, MaxLoadClock) else 1
    live = min(clock.microbatches, ahead + clock.run_ahead)
    if not is_exact(clock):
        pair = pair + samples * (1 + grad) * costs.overhead_s
    return LoadProblem(
        graph=graph,
        seconds=_step_seconds(clock),
        held_bytes=costs.state_bytes + live * graph.saved_bytes,
        capacity_bytes=topology.memory_bytes,
        pair_s=pair,
    )


def relaxation(clock: SimulatedClock) -> LoadProblem:
    """A problem whose optimum no step time is below, for clocks that schedule a step.

    A step takes at least as long as any device computes: its ops, and one instruction's overhead for each microbatch and
    direction. A device holds at least its ops' state. Transfers may all hide behind computing.
    """
    samples = float(fractions(clock.sizes).sum())
    overhead = samples * clock.costs.overhead_s
    every, grad = np.ones(clock.graph.num_ops, bool), clock.graph.requires_grad
    return LoadProblem(
        graph=clock.graph,
        seconds=_step_seconds(clock, grad),
        held_bytes=clock.costs.state_bytes,
        capacity_bytes=clock.topology.memory_bytes,
        present_s=((every, overhead), (grad, overhead)),
    )


def critical_path(clock: SimulatedClock) -> float:
    """Seconds of the longest path of one microbatch, forward and back, each op on its fastest device, no transfers."""
    graph, costs = clock.graph, clock.costs
    edges = graph.edges[np.argsort(graph.edges[:, 0], kind="stable")].tolist()
    forward = costs.on_devices(costs.forward_s).min(axis=1)
    backward = costs.on_devices(costs.backward_s).min(axis=1) * graph.requires_grad
    ahead, there_and_back = forward.copy(), forward + backward
    for source, target in reversed(edges):
        ahead[source] = max(ahead[source], forward[source] + ahead[target])
        if graph.requires_grad[source] and graph.requires_grad[target]:
            both = forward[source] + backward[source] + there_and_back[target]
            there_and_back[source] = max(there_and_back[source], both)
    before = np.zeros(graph.num_ops)
    for source, target in edges:
        before[target] = max(before[target], before[source] + forward[source])
    return float((before + np.maximum(ahead, there_and_back)).max())


def _step_seconds(clock: SimulatedClock, differentiated: Bools | bool = True) -> Floats:
    """Seconds of each op in a whole step, its update included, `float64[n, d]`; backward only where differentiated."""
    costs = clock.costs
    samples = float(fractions(clock.sizes).sum())
    backward = costs.backward_s * np.reshape(differentiated, (-1, 1))
    return costs.on_devices(samples * (costs.forward_s + backward) + costs.update_s)


def _workload_problem(clock: WorkloadClock) -> LoadProblem:
    """The benchmark's max-load: values go through host memory, for free as far as the CPUs are concerned."""
    workload, order = clock.workload, clock.order
    count = clock.topology.num_devices
    seconds = np.empty((len(order), count))
    seconds[:, 1:] = np.where(workload.supported, workload.accelerator_ms, np.inf)[order, None] / 1e3
    seconds[:, CPU] = workload.cpu_ms[order] / 1e3 if workload.cpus else np.inf
    host = np.repeat(workload.cost_ms[order, None] / 1e3, count, axis=1)
    host[:, CPU] = 0.0
    capacity = np.full(count, workload.accelerator_bytes * (1 + ROUNDING))
    capacity[CPU] = np.inf
    return LoadProblem(
        graph=clock.graph,
        seconds=seconds,
        held_bytes=workload.size_bytes[order],
        capacity_bytes=capacity,
        host_s=host,
    )
