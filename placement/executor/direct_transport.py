"""`DirectTransport`: messages from device to device through a communicator of each link's own, as NCCL has them."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ..topology import Topology
from .transport import Expected, Layout, Transport, decode_order, encode_order, memory_order, offsets


def can_go_direct(topology: Topology) -> bool:
    """Whether every device is a GPU with only one worker, which is what NCCL asks for."""
    places = {(device.host, device.index) for device in topology.devices}
    return all(device.kind == "cuda" for device in topology.devices) and 1 < topology.num_devices == len(places)


class DirectTransport(Transport):
    """Sends a message's tensors in one buffer that never leaves the devices.

    NCCL knows no tags: messages of a communicator are matched by their order. So each direction of each link has a group of
    its own, on which both ends follow the sender's part of the schedule. How the sender's tensors lie in memory goes ahead
    over the workers' common gloo group, host to host, so that neither end waits for its GPU.

    Args:
        topology: one worker for each device; all of them construct this together.
        rank: this worker.
        device: where its tensors live.
        backend: `nccl`; `gloo` does the same with host memory.
    """

    def __init__(self, topology: Topology, rank: int, device: torch.device, backend: str = "nccl"):
        super().__init__(topology, rank, device)
        count = topology.num_devices
        self._groups: dict[tuple[int, int], Any] = {
            (a, b): dist.new_group([a, b], backend=backend) for a in range(count) for b in range(count) if a != b
        }

    def start_step(self, incoming: dict[int, list[Expected]]) -> None:
        """See `Transport`."""
        self._waits: list[tuple[Any, Any]] = []
        super().start_step(incoming)

    def _post(self, source: int) -> None:
        if self._waiting[source]:
            number, expected = self._waiting[source].popleft()
            orders = torch.empty(max(1, len(expected.layouts)), dtype=torch.int64)
            ahead = dist.irecv(orders, src=source, tag=number)
            buffer = torch.empty(offsets(expected.layouts, header=0)[-1], dtype=torch.uint8, device=self.device)
            work = dist.irecv(buffer, src=source, group=self._groups[source, self.rank]) if len(buffer) else None
            self._posted[expected.key] = ((ahead, orders, work), buffer, expected)

    def send(self, target: int, tensors: Sequence[torch.Tensor], ready: float) -> None:
        """See `Transport`; what is sent need not have been computed yet."""
        del ready
        layouts = [Layout(tuple(t.shape), t.dtype) for t in tensors]
        places = offsets(layouts, header=0)
        orders = torch.zeros(max(1, len(tensors)), dtype=torch.int64)
        buffer = torch.empty(places[-1], dtype=torch.uint8, device=self.device)
        for i, (tensor, layout) in enumerate(zip(tensors, layouts, strict=True)):
            order = memory_order(tensor)
            orders[i] = encode_order(order)
            part = buffer[places[i] : places[i] + layout.nbytes].view(layout.dtype)
            part.copy_(tensor.permute(order).reshape(-1))
        self._sends.append((dist.isend(orders, dst=target, tag=int(self._numbers[target])), orders))
        if len(buffer):
            self._sends.append((dist.isend(buffer, dst=target, group=self._groups[self.rank, target]), buffer))
        self._numbers[target] += 1
        self.sent_bytes[target] += sum(layout.nbytes for layout in layouts)

    def receive(self, key: Any) -> tuple[list[torch.Tensor], float]:
        """See `Transport`; what comes after it on this device's stream waits for the message."""
        source = self._source[key]
        while key not in self._posted:
            self._post(source)
        (ahead, orders, work), buffer, expected = self._posted.pop(key)
        self._post(source)
        ahead.wait()
        begin = self._mark()
        if work is not None:
            work.wait()
        self._waits.append((begin, self._mark()))
        places = offsets(expected.layouts, header=0)
        tensors = []
        for i, layout in enumerate(expected.layouts):
            order = decode_order(int(orders[i]), len(layout.shape))
            part = buffer[places[i] : places[i] + layout.nbytes].view(layout.dtype)
            tensors.append(part.view([layout.shape[d] for d in order]).permute(np.argsort(order).tolist()))
        return tensors, 0.0

    def _mark(self) -> Any:
        """This moment: on the GPU's stream where there is one."""
        if self.device.type != "cuda":
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def finish_step(self) -> None:
        """See `Transport`."""
        super().finish_step()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.transfer_s = sum(begin.elapsed_time(end) / 1e3 for begin, end in self._waits)
        else:
            self.transfer_s = sum(end - begin for begin, end in self._waits)


def make_transport(topology: Topology, rank: int, device: torch.device) -> Transport:
    """The transport of a topology: direct between GPUs of which each has a worker to itself, else through host memory."""
    if can_go_direct(topology) and dist.is_nccl_available():
        return DirectTransport(topology, rank, device)
    return Transport(topology, rank, device)
