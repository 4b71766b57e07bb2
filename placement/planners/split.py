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


def balanced(weights: Floats) -> Devices:
    """The contiguous split of `weights[d, n]` (what each op weighs on each device) whose heaviest run is lightest."""
    num_devices, count = weights.shape
    line = Line(
        seconds=prefix_sums(weights),
        fixed=np.zeros(num_devices),
        cross=np.zeros((num_devices, num_devices, count + 1)),
        held=np.zeros((num_devices, count + 1)),
        received=np.zeros((num_devices, count + 1)),
        capacity=np.full(num_devices, np.inf),
    )
    return split(line)[1]


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
