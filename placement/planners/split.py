"""The exact dynamic program that cuts a sequence of ops into one run per device."""

from typing import NamedTuple

import numpy as np
from numba import njit

from .plan import Devices, Floats


class Line(NamedTuple):
    """A sequence of `n` ops and `d` devices in the order in which they take their runs.

    Attributes:
        seconds: prefix sums of each op's seconds on each device, `float64[d, n + 1]`.
        fixed: seconds on top for a device that has a run at all, `float64[d]`.
        cross: seconds to carry what crosses the cut before op `c` from one device to another, `float64[d, d, n + 1]`.
        held: prefix sums of each op's bytes on each device, `float64[d, n + 1]`.
        received: bytes that a device holds of what crosses the cut before its run, `float64[d, n + 1]`.
        capacity: bytes of each device, `float64[d]`.
    """

    seconds: Floats
    fixed: Floats
    cross: Floats
    held: Floats
    received: Floats
    capacity: Floats


def balanced(weights: Floats, row_of: Devices) -> Devices:
    """The contiguous split whose heaviest run is lightest: what `split` finds where nothing else counts.

    Args:
        weights: what each op weighs on each kind of device, `float64[kinds, n]`.
        row_of: kind of each device, in the order in which they take their runs, `int64[d]`.

    Returns:
        The position in that order of every op, `int64[n]`; seconds and memory to find it grow with `d * n`.
    """
    return _balanced(np.array(weights, float, order="C"), row_of)


def prefix_sums(values: Floats) -> Floats:
    """Prefix sums along the last axis, with a leading 0."""
    return np.concatenate([np.zeros((*values.shape[:-1], 1)), np.cumsum(values, axis=-1)], axis=-1)


@njit(cache=True)
def split(line: Line) -> tuple[float, Devices]:
    """The split whose slowest run (its ops, and what crosses the cut before it) is fastest; devices may stay empty.

    `best[k, j]` is the least bottleneck of the first `j` ops with the last run on device `k`. Runs only grow slower as
    they reach further back, which ends each search early without losing exactness.

    Returns:
        The bottleneck in seconds (infinite if nothing fits memory) and the position in the line's device order of every
        op, `int64[n]`.
    """
    num_devices, count = line.seconds.shape[0], line.seconds.shape[1] - 1
    best = np.full((num_devices, count + 1), np.inf)
    start = np.zeros((num_devices, count + 1), np.int64)
    before = np.full((num_devices, count + 1), -1)
    for j in range(1, count + 1):
        for k in range(num_devices):
            least = np.inf
            for i in range(j - 1, -1, -1):
                own = line.seconds[k, j] - line.seconds[k, i] + line.fixed[k]
                held = line.held[k, j] - line.held[k, i]
                if own >= least or held > line.capacity[k]:
                    break
                if held + line.received[k, i] > line.capacity[k]:
                    continue
                if i == 0:
                    least, start[k, j], before[k, j] = own, 0, -1
                for p in range(k):
                    slowest = max(best[p, i], own + line.cross[p, k, i])
                    if i > 0 and slowest < least:
                        least, start[k, j], before[k, j] = slowest, i, p
            best[k, j] = least
    devices = np.zeros(count, np.int64)
    last = np.argmin(best[:, count])
    bottleneck = best[last, count]
    j = count
    while j > 0 and np.isfinite(bottleneck):
        i = start[last, j]
        devices[i:j] = last
        last, j = before[last, j], i
    return bottleneck, devices


@njit(cache=True)
def _balanced(weights: Floats, row_of: Devices) -> Devices:
    """`best[k, j]` is the least bottleneck of the first `j` ops on the devices up to `k`, whether or not `k` has a run.

    It grows with `j`, and a run weighs less the later it starts: the best start of the last run is where the two meet, and
    moves forward only.
    """
    num_devices, count = row_of.shape[0], weights.shape[1]
    best, own = np.zeros((num_devices, count + 1)), np.zeros(count + 1)
    for k in range(num_devices):
        _add_up(weights[row_of[k]], own, count)
        if k == 0:
            best[0] = own
            continue
        i, before = 0, best[k - 1]
        for j in range(1, count + 1):
            while i < j and before[i] < own[j] - own[i]:
                i += 1
            least = before[i] if i < j else np.inf
            if i > 0:
                least = min(least, own[j] - own[i - 1])
            best[k, j] = min(before[j], least)
    devices = np.zeros(count, np.int64)
    last, j = _first_below(best, num_devices, count, float(best[num_devices - 1, count])), count
    while j > 0 and last > 0:
        _add_up(weights[row_of[last]], own, j)
        i, bottleneck = _last_run(best[last - 1], own, j)
        devices[i:j] = last
        last, j = _first_below(best, last, i, bottleneck), i
    return devices


@njit(cache=True)
def _add_up(weights: Floats, sums: Floats, count: int) -> None:
    """Prefix sums of the first `count` weights, in place."""
    for op in range(count):
        sums[op + 1] = sums[op] + weights[op]


@njit(cache=True)
def _last_run(before: Floats, own: Floats, j: int) -> tuple[int, float]:
    """The latest start of the best last run that ends before op `j`, and the bottleneck; `before` is `best` without it."""
    low, high = 0, j
    while low < high:
        middle = (low + high) // 2
        if before[middle] < own[j] - own[middle]:
            low = middle + 1
        else:
            high = middle
    if low > 0 and (low == j or own[j] - own[low - 1] < before[low]):
        return low - 1, own[j] - own[low - 1]
    least = before[low]
    while low + 1 < j and before[low + 1] == least:
        low += 1
    return low, least


@njit(cache=True)
def _first_below(best: Floats, end: int, j: int, bottleneck: float) -> int:
    """The first device before `end` up to which the first `j` ops can have no larger bottleneck; 0 without ops."""
    for k in range(end):
        if best[k, j] <= bottleneck:
            return k
    return 0
