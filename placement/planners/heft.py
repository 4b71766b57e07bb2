"""`heft`: list scheduling by upward rank."""

from bisect import bisect_right, insort

import numpy as np

from ..clock import SimulatedClock
from .list_state import ListState
from .plan import MEMORY_SHARES, Devices, Evaluator


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


class _Heft(ListState):
    """The schedule so far, with the busy intervals of every device."""

    def __init__(self, clock: SimulatedClock, memory_share: float):
        super().__init__(clock, memory_share)
        self.busy: list[list[tuple[float, float]]] = [[] for _ in self.topology.devices]

    def place(self) -> Devices:
        """Put every op, the highest upward rank first."""
        for op in np.lexsort((np.arange(len(self.end)), -self.upward_ranks())).tolist():
            candidates = np.flatnonzero(self.candidates(np.array([op]))[0]).tolist()
            arrivals = self.arrivals(op)
            starts = [self._earliest_start(op, device, arrivals[device]) for device in candidates]
            ends = np.array(starts) + self.seconds[op, candidates]
            chosen = int(np.argmin(ends))
            device, start, end = candidates[chosen], starts[chosen], float(ends[chosen])
            self.put(op, device, end)
            if end > start:
                insort(self.busy[device], (start, end))
        return self.devices

    def _earliest_start(self, op: int, device: int, ready: float) -> float:
        """The first gap on the device that is long enough and begins after all inputs have arrived."""
        intervals, needed = self.busy[device], self.seconds[op, device]
        position = bisect_right(intervals, (ready, np.inf))
        if position and intervals[position - 1][1] > ready:
            ready = intervals[position - 1][1]
        while position < len(intervals) and intervals[position][0] < ready + needed:
            ready = max(ready, intervals[position][1])
            position += 1
        return float(ready)
