"""The queues of the list scheduler: small binary heaps in slices of one array, and a tournament of times."""

from typing import Any

import numpy as np

from .compiled import hot, inlined
from .stages import Floats

# numpy records; pyright knows no fields of theirs.
Records = Any

ENTRY = np.dtype([("time", np.float64), ("kind", np.int64)], align=True)


@hot
def _less(heap: Records, a: int, b: int) -> bool:
    return heap[a].time < heap[b].time or (heap[a].time == heap[b].time and heap[a].kind < heap[b].kind)


@hot
def _swap(heap: Records, a: int, b: int) -> None:
    time, kind = heap[a].time, heap[a].kind
    heap[a].time, heap[a].kind = heap[b].time, heap[b].kind
    heap[b].time, heap[b].kind = time, kind


@hot
def push(heap: Records, base: int, size: int, time: float, kind: int) -> None:
    """Add to the heap of `size` entries that begins at `base`; among equal times the smaller kind comes first."""
    child = size
    heap[base + child].time, heap[base + child].kind = time, kind
    while child > 0:
        parent = (child - 1) // 2
        if not _less(heap, base + child, base + parent):
            break
        _swap(heap, base + child, base + parent)
        child = parent


@hot
def pop(heap: Records, base: int, size: int) -> int:
    """Take the first entry of the heap of `size` entries that begins at `base`."""
    first = heap[base].kind
    size -= 1
    heap[base].time, heap[base].kind = heap[base + size].time, heap[base + size].kind
    parent = 0
    while True:
        child = 2 * parent + 1
        if child >= size:
            break
        if child + 1 < size and _less(heap, base + child + 1, base + child):
            child += 1
        if not _less(heap, base + child, base + parent):
            break
        _swap(heap, base + child, base + parent)
        parent = child
    return first


@inlined
def set_due(due: Floats, device: int, time: float) -> None:
    """Say when a device next has something to do; `due[1]` is then the earliest time of all devices."""
    place = due.shape[0] // 2 + device
    due[place] = time
    while place > 1:
        place //= 2
        earlier = min(due[2 * place], due[2 * place + 1])
        if due[place] == earlier:
            break
        due[place] = earlier


@inlined
def first_due(due: Floats) -> int:
    """The device of the earliest time, the first one of several."""
    place, leaves = 1, due.shape[0] // 2
    while place < leaves:
        place *= 2
        if due[place] != due[place // 2]:
            place += 1
    return place - leaves
