"""`max_load`: the load of the busiest device under a placement, compiled."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .compiled import hot

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class DeviceLoads(NamedTuple):
    """What the ops and values of a step cost each device, and room to add it up in.

    Attributes:
        seconds: of each op in a whole step on each class of devices, its update included, `float64[n, c]`.
        device_class: of each device, `int64[d]`.
        held_bytes: that each op holds on its device, `float64[n]`.
        out_start: readers of op `i` are `targets[out_start[i]:out_start[i + 1]]`.
        targets: the readers.
        sent_bytes: of each op's value in a whole step, `float64[n]`.
        messages: in which each value is sent.
        differentiated: whether the value's gradient is sent back, `bool[n]`.
        latency: seconds per message between two devices, `float64[d, d]`.
        seconds_per_byte: likewise.
        memory_bytes: of each device, `float64[d]`.
        busy: room for seconds of compute, `float64[d]`.
        moving: room for seconds of transfers, `float64[d]`.
        held: room for bytes, `float64[d]`.
        seen: room for which op's value a device has got, `int64[d]`.
    """

    seconds: Floats
    device_class: Ints
    held_bytes: Floats
    out_start: Ints
    targets: Ints
    sent_bytes: Floats
    messages: float
    differentiated: NDArray[np.bool_]
    latency: Floats
    seconds_per_byte: Floats
    memory_bytes: Floats
    busy: Floats
    moving: Floats
    held: Floats
    seen: Ints


@hot
def max_load(devices: Ints, work: DeviceLoads) -> tuple[float, float]:
    """The largest load in seconds, and bytes by which the tightest device overflows; leaves each device's in `work`."""
    for device in range(work.memory_bytes.shape[0]):
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
    for device in range(work.memory_bytes.shape[0]):
        load = max(load, work.busy[device] + work.moving[device])
        overflow = max(overflow, work.held[device] - work.memory_bytes[device])
    return load, overflow
