"""`heft`: list scheduling by upward rank."""

from bisect import bisect_right, insort

import numpy as np

from ..clock import SimulatedClock
from .plan import MEMORY_SHARES, Devices, Evaluator, Floats, at_leaders, leaders


def heft(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """Heterogeneous Earliest Finish Time (Topcuoglu et al., IEEE TPDS 13(3), 2002) for one microbatch.

    Ops in the order of their upward rank (the mean time from them to the end) go where they finish first, in gaps between
    earlier ones too. Forward and backward count together: an op's seconds and a transfer's bytes are those of both. A
    colocation group goes as a whole where its first op is put; a device whose memory is full takes no more while another
    has room.
    """
    del rng
    for share in MEMORY_SHARES:
        if not evaluator.left:
            return
        overflow, _ = evaluator(_Heft(evaluator.clock, share).place())
        if not overflow:
            return


class _Heft:
    """The schedule so far: busy intervals of every device, and where and when every op ends."""

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
        self.room = memory_share * topology.memory_bytes
        self.devices = np.full(graph.num_ops, -1, np.int64)
        self.end = np.zeros(graph.num_ops)
        self.busy: list[list[tuple[float, float]]] = [[] for _ in topology.devices]

    def place(self) -> Devices:
        """Put every op, the highest upward rank first."""
        for op in np.lexsort((np.arange(len(self.end)), -self._upward_ranks())):
            candidates = self._candidates(int(op))
            starts = [self._earliest_start(int(op), device) for device in candidates]
            ends = np.array(starts) + self.seconds[op, candidates]
            chosen = int(np.argmin(ends))
            self._put(int(op), candidates[chosen], starts[chosen], float(ends[chosen]))
        return self.devices

    def _upward_ranks(self) -> Floats:
        count = self.topology.num_devices
        pairs = max(1, count * (count - 1))
        latency, per_byte = self.topology.latency_s.sum() / pairs, self.topology.seconds_per_byte.sum() / pairs
        rank = self.seconds.mean(axis=1)
        transfer = self.messages * latency + self.bytes * per_byte
        for op in range(len(rank) - 1, -1, -1):
            consumers = self.edges.targets[self.edges.out_start[op] : self.edges.out_start[op + 1]]
            if consumers.size:
                rank[op] += transfer[op] + rank[consumers].max()
        return rank

    def _candidates(self, op: int) -> list[int]:
        pinned = int(self.devices[self.leader[op]])
        if pinned >= 0:
            return [pinned]
        fits = np.flatnonzero(self.room >= self.memory[self.leader[op]])
        return fits.tolist() or [int(np.argmax(self.room))]

    def _earliest_start(self, op: int, device: int) -> float:
        """The first gap on the device that is long enough and begins after all inputs have arrived."""
        producers = self.edges.sources[self.edges.in_start[op] : self.edges.in_start[op + 1]]
        ready = 0.0
        for producer in producers:
            home = self.devices[producer]
            transfer = self.messages[producer] * self.topology.latency_s[home, device]
            transfer += self.bytes[producer] * self.topology.seconds_per_byte[home, device]
            ready = max(ready, self.end[producer] + transfer)
        intervals, needed = self.busy[device], self.seconds[op, device]
        position = bisect_right(intervals, (ready, np.inf))
        if position and intervals[position - 1][1] > ready:
            ready = intervals[position - 1][1]
        while position < len(intervals) and intervals[position][0] < ready + needed:
            ready = max(ready, intervals[position][1])
            position += 1
        return float(ready)

    def _put(self, op: int, device: int, start: float, end: float) -> None:
        if self.devices[self.leader[op]] < 0:
            self.room[device] -= self.memory[self.leader[op]]
            self.devices[self.leader[op]] = device
        self.devices[op] = device
        self.end[op] = end
        if end > start:
            insort(self.busy[device], (start, end))
