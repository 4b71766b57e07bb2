"""`WorkloadClock`: a workload of the public benchmark as a graph on a topology, priced by the benchmark's own objective."""

from graphlib import TopologicalSorter

import numpy as np
from numpy.typing import NDArray

from .clock import Pricing, SimulatedClock, StepReport
from .costs import Costs
from .errors import SegueError
from .graph import Graph, make_graph
from .objectives import OBJECTIVES, Score, device_bytes, device_loads
from .placement import Placement
from .topology import Device, Link, Topology
from .workload import CPU, Workload

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# A host's memory is not part of a workload.
_BOUNDLESS = 1e18
# What a node takes where it cannot run, in multiples of what all nodes take: finite, so that sums stay numbers.
_NEVER = 10.0


class WorkloadClock(SimulatedClock):
    """Prices placements of a workload, so that every planner can place it.

    Device 0 is the CPUs, 1 to k are the accelerators. Ops are the nodes in a topological order; a node's output travels
    through host memory, so accelerators are two hops from each other.

    Args:
        workload: what is placed.
        objective: `max-load` or `latency`, as the benchmark defines them.

    Attributes:
        workload: what is placed.
        order: node of every op, `int64[n]`.
    """

    def __init__(self, workload: Workload, objective: str):
        if objective not in OBJECTIVES:
            raise SegueError(f"objective {objective!r}: no such objective; known: {', '.join(OBJECTIVES)}")
        self.workload = workload
        self.objective = objective
        self.order = _topological(workload)
        topology = _topology(workload)
        super().__init__(_graph(workload, self.order), topology, _costs(workload, self.order, topology))
        self.steady = objective == "max-load"

    @property
    def pricing(self) -> Pricing:
        """None: the benchmark's objectives have searches of their own (`planners.workload_search`)."""
        raise SegueError(f"workload {self.workload.name}: its objective has no compiled price; use `evaluate`")

    def node_devices(self, devices: Ints) -> Ints:
        """From the device of every op to that of every node."""
        result = np.empty_like(devices)
        result[self.order] = devices
        return result

    def op_devices(self, node_devices: Ints) -> Ints:
        """The inverse of `node_devices`."""
        return node_devices[self.order]

    def score(self, devices: Ints) -> Score:
        """The benchmark's value of an op-to-device map, and why it is not allowed."""
        return OBJECTIVES[self.objective](self.workload, self.node_devices(devices))

    def evaluate(self, devices: Ints) -> tuple[float, float]:
        """The objective in seconds, and bytes that do not fit, plus one for each other reason it is not allowed."""
        score = self.score(devices)
        if score.feasible:
            return score.value_ms / 1e3, 0.0
        held = device_bytes(self.workload, self.node_devices(devices))
        excess = np.maximum(0.0, held - self.workload.accelerator_bytes).sum()
        return score.value_ms / 1e3, float(excess + len(score.reasons))

    def evaluate_many(self, devices: Ints) -> tuple[Floats, Floats]:
        """`evaluate` for each row of `int64[k, n]`."""
        values = np.array([self.evaluate(row) for row in devices])
        return values[:, 0], values[:, 1]

    def step(self, placement: Placement, timeline: bool = False) -> StepReport:
        """Price a placement; `busy_s` is each device's load, transfers included.

        A placement whose value is infinite takes ten times its loads, one after the other, so that a policy sees numbers.
        """
        del timeline
        nodes = self.node_devices(placement.devices)
        score = self.score(placement.devices)
        loads = device_loads(self.workload, nodes)
        value = score.value_ms if np.isfinite(score.value_ms) else _NEVER * loads.sum()
        return StepReport(
            step_time_s=value / 1e3,
            busy_s=loads / 1e3,
            transfer_s=np.zeros(self.topology.num_devices),
            peak_bytes=device_bytes(self.workload, nodes),
            capacity_bytes=self.topology.memory_bytes,
            source="simulated",
        )


def _topological(workload: Workload) -> Ints:
    before: dict[int, list[int]] = {node: [] for node in range(workload.num_nodes)}
    for source, target in workload.edges.tolist():
        before[target].append(source)
    return np.array(list(TopologicalSorter(before).static_order()), np.int64)


def _topology(workload: Workload) -> Topology:
    """The CPUs and the accelerators; a byte of the graph stands for a nanosecond on the way to the host."""
    devices = [Device("cpu", "cpu", _BOUNDLESS)]
    names = [f"accelerator{device}" for device in range(1, workload.accelerators + 1)]
    devices += [Device(name, "cuda", workload.accelerator_bytes) for name in names]
    links = [
        Link(a.name, b.name, 0.0, 1e9 if CPU in (i, j) else 5e8)
        for i, a in enumerate(devices)
        for j, b in enumerate(devices)
        if i != j
    ]
    return Topology(workload.name, tuple(devices), tuple(links))


def _graph(workload: Workload, order: Ints) -> Graph:
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    count = workload.num_nodes
    return make_graph(
        workload.name,
        position[workload.edges],
        count,
        batch_size=1,
        names=[str(node) for node in workload.ids[order]],
        requires_grad=np.zeros(count, bool),
        colocation=workload.color[order],
        output_bytes=1e6 * workload.cost_ms[order],
        buffer_bytes=workload.size_bytes[order],
    )


def _costs(workload: Workload, order: Ints, topology: Topology) -> Costs:
    never = _NEVER * (workload.cpu_ms.sum() + workload.accelerator_ms.sum() + 1.0)
    on_cpu = workload.cpu_ms if workload.cpus else np.full(workload.num_nodes, never)
    on_accelerator = np.where(workload.supported, workload.accelerator_ms, never)
    seconds = np.stack([on_cpu, on_accelerator], axis=1)[order] / 1e3
    return Costs(
        forward_s=seconds,
        backward_s=np.zeros_like(seconds),
        update_s=np.zeros_like(seconds),
        device_class=np.minimum(np.arange(topology.num_devices), 1),
        state_bytes=workload.size_bytes[order],
        working_bytes=np.zeros(len(order)),
        overhead_s=topology.overhead_s,
    )
