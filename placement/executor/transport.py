"""Messages between workers: all tensors of a message in one buffer, received ahead, over torch.distributed."""

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from ..topology import Topology
from .channels import Channels

AHEAD = 8
"""Receives that are posted ahead on each link."""

ALIGN = 16


class Layout(NamedTuple):
    """Shape and type of one tensor of a message."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's elements."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass
class Expected:
    """A message to be received: what identifies it, and what is in it."""

    key: Any
    layouts: list[Layout]


def _header(count: int) -> int:
    """Bytes before the tensors: the arrival time, and a code of each tensor's memory order."""
    return -(-8 * (1 + count) // ALIGN) * ALIGN


def offsets(layouts: Sequence[Layout], header: int) -> list[int]:
    """Where each tensor of a message begins behind a header of so many bytes, and where the last ends."""
    places = [header]
    for layout in layouts:
        places.append(places[-1] + -(-layout.nbytes // ALIGN) * ALIGN)
    return places


class Transport:
    """Sends and receives one step's messages for one worker.

    Messages of one link arrive in the order in which they are sent; their tag is their number on the link. Buffers are host
    memory (pinned where there is a GPU). Links between emulated devices deliver a message at the declared time: the sender
    stamps it, the receiver waits for the stamp.
    """

    def __init__(self, topology: Topology, rank: int, device: torch.device):
        self.rank = rank
        self.device = device
        self.pinned = device.type == "cuda"
        self.emulated = topology.devices[rank].kind == "emulated"
        self.latency = topology.latency_s[rank]
        self.seconds_per_byte = topology.seconds_per_byte[rank]
        self.num_devices = topology.num_devices
        self.channels = Channels(topology) if self.emulated else None

    def start_step(self, incoming: dict[int, list[Expected]]) -> None:
        """Post the first receives of every link.

        Args:
            incoming: messages from each sender, in the order in which they will be sent.
        """
        self.sent_bytes = np.zeros(self.num_devices)
        self.transfer_s = 0.0
        self._numbers = np.zeros(self.num_devices, int)
        self._sends: list[tuple[Any, torch.Tensor]] = []
        self._waiting = {source: deque(enumerate(messages)) for source, messages in incoming.items()}
        self._posted: dict[Any, tuple[Any, torch.Tensor, Expected]] = {}
        self._source = {message.key: source for source, messages in incoming.items() for message in messages}
        for source in incoming:
            for _ in range(AHEAD):
                self._post(source)

    def _buffer(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=self.pinned)

    def _post(self, source: int) -> None:
        if self._waiting[source]:
            number, expected = self._waiting[source].popleft()
            buffer = self._buffer(offsets(expected.layouts, _header(len(expected.layouts)))[-1])
            work = dist.irecv(buffer, src=source, tag=number)
            self._posted[expected.key] = (work, buffer, expected)

    def send(self, target: int, tensors: Sequence[torch.Tensor], ready: float) -> None:
        """Start sending `tensors` to worker `target`; `ready` is when they were done (`time.monotonic`)."""
        layouts = [Layout(tuple(t.shape), t.dtype) for t in tensors]
        places = offsets(layouts, _header(len(layouts)))
        buffer = self._buffer(places[-1])
        header = np.zeros(1 + len(tensors))
        payload = sum(layout.nbytes for layout in layouts)
        header[0] = self._arrival(target, payload, ready)
        for i, (tensor, layout) in enumerate(zip(tensors, layouts, strict=True)):
            order = memory_order(tensor)
            header[1 + i] = encode_order(order)
            part = buffer[places[i] : places[i] + layout.nbytes].view(layout.dtype)
            part.copy_(tensor.permute(order).reshape(-1), non_blocking=self.pinned)
        buffer[: header.nbytes] = torch.from_numpy(header.view(np.uint8))
        if self.pinned:
            torch.cuda.current_stream(self.device).synchronize()
        work = dist.isend(buffer, dst=target, tag=int(self._numbers[target]))
        self._numbers[target] += 1
        self.sent_bytes[target] += payload
        self._sends.append((work, buffer))

    def _arrival(self, target: int, payload: int, ready: float) -> float:
        if self.channels is None:
            return 0.0
        seconds = float(self.latency[target] + payload * self.seconds_per_byte[target])
        self.transfer_s += seconds
        return self.channels.take(self.rank, target, ready, seconds)

    def receive(self, key: Any) -> tuple[list[torch.Tensor], float]:
        """Wait for a message; returns its tensors and the time before which it has not arrived."""
        source = self._source[key]
        while key not in self._posted:
            # The sender is far ahead: messages for later come before this one.
            self._post(source)
        work, buffer, expected = self._posted.pop(key)
        self._post(source)
        begin = time.monotonic()
        work.wait()
        if not self.emulated:
            self.transfer_s += time.monotonic() - begin
        header = buffer[: 8 * (1 + len(expected.layouts))].view(torch.float64)
        places = offsets(expected.layouts, _header(len(expected.layouts)))
        tensors = []
        for i, layout in enumerate(expected.layouts):
            order = decode_order(int(header[1 + i]), len(layout.shape))
            part = buffer[places[i] : places[i] + layout.nbytes].view(layout.dtype)
            part = part.view([layout.shape[d] for d in order]).permute(np.argsort(order).tolist())
            tensors.append(part.to(self.device, non_blocking=True) if self.pinned else part)
        return tensors, float(header[0])

    def finish_step(self) -> None:
        """Wait until everything sent has left."""
        for work, _ in self._sends:
            work.wait()
        self._sends.clear()


def memory_order(tensor: torch.Tensor) -> list[int]:
    """Dimensions from outermost to innermost in memory, if the elements fill their memory; else in their own order.

    The receiver lays a tensor out as the sender did, so that the same kernels run on it.
    """
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda d: (-strides[d], d))
    return order if tensor.permute(order).is_contiguous() else list(range(tensor.dim()))


def encode_order(order: Sequence[int]) -> int:
    """A permutation of fewer than 16 dimensions as one number."""
    return sum(d << (4 * i) for i, d in enumerate(order))


def decode_order(code: int, dimensions: int) -> list[int]:
    """The inverse of `encode_order`."""
    return [(code >> (4 * i)) & 15 for i in range(dimensions)]
