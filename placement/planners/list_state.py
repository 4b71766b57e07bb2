"""`ListState`: what the list-scheduling planners know of a schedule that they build op by op."""

import numpy as np
from numpy.typing import NDArray

from ..clock import SimulatedClock
from ..errors import SegueError
from .plan import Devices, Floats, at_leaders, leaders

Bools = NDArray[np.bool_]


class ListState:
    """Where and when every op ends so far, and the memory that is left, for one microbatch.

    Forward and backward count together: an op's seconds and a transfer's bytes are those of both. Memory is estimated: an
    op's state, and what it saves for as many microbatches as a last stage keeps alive.

    Args:
        clock: graph, topology and costs.
        memory_share: how much of each device's memory may be filled.

    Raises:
        SegueError: if no device can run an op's whole colocation group.

    Attributes:
        seconds: of each op on each device, `float64[n, d]`.
        runs: whether a device can run a group, at the group's first op, `bool[n, d]`.
        sensible: whether it takes no longer for the group than others for the whole graph.
        devices: device of each op, -1 before it is put, `int64[n]`.
        end: second at which each op ends.
        room: bytes that are left on each device.
    """

    def __init__(self, clock: SimulatedClock, memory_share: float):
        graph, costs, topology = clock.graph, clock.costs, clock.topology
        self.edges = clock.edges
        self.topology = topology
        self.leader = leaders(graph)
        self.seconds = costs.on_devices(costs.forward_s + costs.backward_s)
        self.bytes = graph.output_bytes * (1.0 + graph.requires_grad)
        self.messages = 1.0 + graph.requires_grad
        live = min(clock.microbatches, 1 + clock.run_ahead)
        self.memory = at_leaders(costs.state_bytes + live * graph.saved_bytes, graph)
        group_seconds = at_leaders(self.seconds, graph)
        longest = np.maximum(self.seconds.min(axis=1).sum(), group_seconds.min(axis=1))
        self.runs = np.isfinite(group_seconds)
        self.sensible = self.runs & (group_seconds <= longest[:, None])
        for op in np.flatnonzero(~self.runs.any(axis=1))[:1]:
            raise SegueError(f"graph {graph.name}: no device can run {graph.names[op]} and what is colocated with it")
        self.room = memory_share * topology.memory_bytes
        self.devices = np.full(graph.num_ops, -1, np.int64)
        self.end = np.zeros(graph.num_ops)

    def upward_ranks(self) -> Floats:
        """Mean seconds from each op's start to the end of the graph, over the devices that can run it, `float64[n]`."""
        transfer = self.mean_transfers()
        rank = np.nanmean(np.where(self.runs[self.leader], self.seconds, np.nan), axis=1)
        for op in range(len(rank) - 1, -1, -1):
            consumers = self.consumers(op)
            if consumers.size:
                rank[op] += transfer[op] + rank[consumers].max()
        return rank

    def mean_transfers(self) -> Floats:
        """Seconds that each op's value and its gradient travel, over all links, `float64[n]`."""
        count = self.topology.num_devices
        pairs = max(1, count * (count - 1))
        latency, per_byte = self.topology.latency_s.sum() / pairs, self.topology.seconds_per_byte.sum() / pairs
        return self.messages * latency + self.bytes * per_byte

    def producers(self, op: int) -> Devices:
        """Ops that `op` reads from."""
        return self.edges.sources[self.edges.in_start[op] : self.edges.in_start[op + 1]]

    def consumers(self, op: int) -> Devices:
        """Ops that read from `op`."""
        return self.edges.targets[self.edges.out_start[op] : self.edges.out_start[op + 1]]

    def candidates(self, ops: Devices) -> Bools:
        """Where each op may go: its group's device, or those with room that are sensible, or can run it, or the roomiest.

        Returns:
            `bool[len(ops), d]`, in each row at least one device.
        """
        leader = self.leader[ops]
        home = self.devices[leader]
        fits = self.runs[leader] & (self.room >= self.memory[leader, None])
        sensible = fits & self.sensible[leader]
        allowed = np.where(sensible.any(axis=1, keepdims=True), sensible, fits)
        full = np.flatnonzero(~fits.any(axis=1))
        allowed[full, np.argmax(np.where(self.runs[leader[full]], self.room, -np.inf), axis=1)] = True
        pinned = np.flatnonzero(home >= 0)
        allowed[pinned] = False
        allowed[pinned, home[pinned]] = True
        return allowed

    def arrivals(self, op: int) -> Floats:
        """When all inputs of `op`, whose producers are put, have reached each device, `float64[d]`."""
        arrival = np.zeros(self.topology.num_devices)
        for producer in self.producers(op):
            home = self.devices[producer]
            transfer = self.messages[producer] * self.topology.latency_s[home]
            transfer = transfer + self.bytes[producer] * self.topology.seconds_per_byte[home]
            arrival = np.maximum(arrival, self.end[producer] + transfer)
        return arrival

    def put(self, op: int, device: int, end: float) -> None:
        """Let `op` run on `device` until `end`; the first op of a group takes the memory of the whole group."""
        leader = self.leader[op]
        if self.devices[leader] < 0:
            self.room[device] -= self.memory[leader]
            self.devices[leader] = device
        self.devices[op] = device
        self.end[op] = end
