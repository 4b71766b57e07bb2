"""What would cross between devices after every move: transfers, messages, and where a unit's neighbours are."""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Flows(NamedTuple):
    """Sums over the edges between each of `u` units and the groups around it, for every device it may move to.

    Attributes:
        transfer_s: seconds of a step that they would take, `float64[u, d]`.
        messages: messages of a step that would go to or come from other devices, likewise.
        near: share of their bytes that goes to or comes from groups on the device, likewise.
        touching_s: seconds that they take now, together with the edges within the unit, `float64[u]`.
    """

    transfer_s: Floats
    messages: Floats
    near: Floats
    touching_s: Floats


@njit(cache=True)
def unit_flows(
    member: Bools, edges: Ints, volume: Floats, messages: Floats, seconds: Floats, latency: Floats, pace: Floats,
    share: Floats,
) -> Flows:  # fmt: skip
    """Flows of every unit.

    Args:
        member: groups in each unit, `bool[u, n]`.
        edges: rows `(source, target)`, `int64[e, 2]`.
        volume: bytes of a step over each edge, `float64[e]`.
        messages: messages likewise.
        seconds: what each edge takes now.
        latency: from each group to each device, `float64[n, d]`.
        pace: seconds per byte, likewise.
        share: share of each group's ops on each device, likewise.
    """
    units, devices = member.shape[0], share.shape[1]
    transfer, crossing, near = np.zeros((units, devices)), np.zeros((units, devices)), np.zeros((units, devices))
    touching = np.zeros(units)
    for unit in range(units):
        total = 0.0
        for edge in range(edges.shape[0]):
            from_here, to_here = member[unit, edges[edge, 0]], member[unit, edges[edge, 1]]
            if not (from_here or to_here):
                continue
            touching[unit] += seconds[edge]
            if from_here and to_here:
                continue
            other = edges[edge, 1] if from_here else edges[edge, 0]
            total += volume[edge]
            for device in range(devices):
                there = share[other, device]
                transfer[unit, device] += messages[edge] * latency[other, device] + volume[edge] * pace[other, device]
                crossing[unit, device] += messages[edge] * (1.0 - there)
                near[unit, device] += volume[edge] * there
        near[unit] /= max(total, 1e-30)
    return Flows(transfer, crossing, near, touching)
