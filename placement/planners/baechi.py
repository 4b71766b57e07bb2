"""`m-etf` and `m-sct`: Baechi's list schedulers, which take the ops in the order in which they can start."""

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array, hstack, vstack

from ..clock import SimulatedClock
from .list_state import Bools, ListState
from .plan import MEMORY_SHARES, Devices, Evaluator, Floats

# An op's favourite child is the one whose edge the linear program gives less than this: half, as in Hanen and Munier's proof.
THRESHOLD = 0.5
# Edges above which the linear program is left out (it then takes more than a few seconds), and m-sct plans as m-etf.
MOST_EDGES = 5_000


def m_etf(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """Memory-constrained earliest task first (Jeon et al., "Baechi", SoCC 2020), for one microbatch.

    Of all ops whose inputs are placed and all devices with room for them, the pair that can start first is put, time after
    time (Hwang et al.'s ETF, SIAM J. Comput. 18(2), 1989); among equals the op with most work behind it, where it ends
    first. Seconds, bytes and colocation groups count as in `heft`.
    """
    del rng
    _try_shares(evaluator, np.full(evaluator.clock.graph.num_ops, -1, np.int64))


def m_sct(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """Memory-constrained small communication times (Jeon et al., "Baechi", SoCC 2020), for one microbatch.

    `m_etf`, but a device that has just run an op waits for the op's favourite child when it can start that one first; only
    ops whose inputs are everywhere go before it. The favourite children come from the linear relaxation of Hanen and Munier
    (Discrete Applied Mathematics 61, 1995); in graphs of more than `MOST_EDGES` edges no op has one.
    """
    del rng
    _try_shares(evaluator, favourite_children(evaluator.clock))


def _try_shares(evaluator: Evaluator, favourite: Devices) -> None:
    for share in MEMORY_SHARES:
        if not evaluator.left:
            return
        overflow, _ = evaluator(EarliestFirst(evaluator.clock, share, favourite).place())
        if not overflow:
            return


class EarliestFirst(ListState):
    """The schedule so far: when each device is free, and what it ran last.

    Args:
        clock: graph, topology and costs.
        memory_share: how much of each device's memory may be filled.
        favourite: favourite child of each op, -1 where it has none, `int64[n]`.
    """

    def __init__(self, clock: SimulatedClock, memory_share: float, favourite: Devices):
        super().__init__(clock, memory_share)
        self.favourite = favourite
        self.rank = self.upward_ranks()
        self.free = np.zeros(self.topology.num_devices)
        self.last = np.full(self.topology.num_devices, -1)
        self.missing = np.diff(self.edges.in_start)
        self.ready: list[int] = np.flatnonzero(self.missing == 0).tolist()
        self.arrival = np.zeros((clock.graph.num_ops, self.topology.num_devices))

    def place(self) -> Devices:
        """Put every op, the earliest start first."""
        while self.ready:
            op, device, start = self._earliest()
            self.free[device] = end = start + float(self.seconds[op, device])
            self.last[device] = op
            self.put(op, device, end)
            self.ready.remove(op)
            for consumer in self.consumers(op).tolist():
                self.missing[consumer] -= 1
                if self.missing[consumer] == 0:
                    self.arrival[consumer] = self.arrivals(consumer)
                    self.ready.append(consumer)
        return self.devices

    def _earliest(self) -> tuple[int, int, float]:
        """The op, device and second of the next start."""
        ready = np.array(self.ready)
        allowed = self.candidates(ready)
        start = np.where(allowed, np.maximum(self.arrival[ready], self.free), np.inf)
        favoured = self._wait_for_favourites(ready, start, allowed)
        rows, columns = np.nonzero(start == start.min())
        ops = ready[rows]
        first = np.lexsort((columns, ops, self.seconds[ops, columns], -self.rank[ops], ~favoured[rows, columns]))[0]
        return int(ops[first]), int(columns[first]), float(start.min())

    def _wait_for_favourites(self, ready: Devices, start: Floats, allowed: Bools) -> Bools:
        """Delay, in `start`, what would go before a device's favourite; returns the favourites' places, `bool[r, d]`."""
        favoured = np.zeros(start.shape, bool)
        earliest = start.min(axis=1)
        for device in np.flatnonzero(self.last >= 0).tolist():
            row = np.flatnonzero(ready == self.favourite[self.last[device]])
            favoured[row, device] = allowed[row, device] & (start[row, device] == earliest[row])
        everywhere = self.arrival[ready].max(axis=1, keepdims=True)
        waits = favoured.any(axis=0) & ~favoured
        np.maximum(start, everywhere, out=start, where=waits)
        return favoured


def favourite_children(clock: SimulatedClock) -> Devices:
    """The favourite child of each op: what should follow it on its device, `int64[n]`, -1 for none.

    The linear program minimises the time `w` of a schedule on unboundedly many devices, in which an edge costs its transfer
    times `x` in [0, 1], and of all edges out of an op, or into it, at most one can be free. An op takes its mean seconds
    over the devices, a transfer its mean over the links. Solved by HiGHS.
    """
    state = ListState(clock, np.inf)
    edges, count = clock.graph.edges, clock.graph.num_ops
    favourite = np.full(count, -1, np.int64)
    if not 0 < len(edges) <= MOST_EDGES:
        return favourite
    seconds = np.nanmean(np.where(np.isfinite(state.seconds), state.seconds, np.nan), axis=1)
    transfer = state.mean_transfers()[edges[:, 0]]
    scale = max(float(seconds.sum() + transfer.sum()), 1e-300)
    result = linprog(**_program(edges, seconds / scale, transfer / scale), method="highs")
    if result.x is None:
        return favourite
    # Taken in the order of their value, so that no op gets two favourites where two edges stand at the threshold.
    followed = np.zeros(count, bool)
    for edge in np.argsort(result.x[: len(edges)], kind="stable").tolist():
        source, target = edges[edge]
        if result.x[edge] < THRESHOLD and favourite[source] < 0 and not followed[target]:
            favourite[source], followed[target] = target, True
    return favourite


def _program(edges: Devices, seconds: Floats, transfer: Floats) -> dict:
    """Arguments of `linprog`; the variables are every edge's `x`, every op's start and the end `w`."""
    count, size = len(edges), len(seconds)
    every, ops = np.arange(count), np.arange(size)

    def matrix(rows: Devices, columns: Devices, values: Floats | float, height: int, width: int) -> coo_array:
        return coo_array((np.broadcast_to(values, rows.shape), (rows, columns)), (height, width))

    after = matrix(every, edges[:, 0], 1.0, count, size) - matrix(every, edges[:, 1], 1.0, count, size)
    one_child = matrix(edges[:, 0], every, -1.0, size, count)
    one_parent = matrix(edges[:, 1], every, -1.0, size, count)
    no_start, no_end = coo_array((size, size)), coo_array((size, 1))
    upper = vstack(
        [
            hstack([matrix(every, every, transfer, count, count), after, coo_array((count, 1))]),
            hstack([one_child, no_start, no_end]),
            hstack([one_parent, no_start, no_end]),
            hstack([coo_array((size, count)), matrix(ops, ops, 1.0, size, size), coo_array(-np.ones((size, 1)))]),
        ]
    )
    out = np.bincount(edges[:, 0], minlength=size)
    into = np.bincount(edges[:, 1], minlength=size)
    limits = [-seconds[edges[:, 0]], np.minimum(0, 1 - out), np.minimum(0, 1 - into), -seconds]
    cost = np.zeros(count + size + 1)
    cost[-1] = 1.0
    bounds = [(0.0, 1.0)] * count + [(0.0, None)] * (size + 1)
    return {"c": cost, "A_ub": upper.tocsr(), "b_ub": np.concatenate(limits).astype(float), "bounds": bounds}
