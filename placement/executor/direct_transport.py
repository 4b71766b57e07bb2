"""`DirectTransport`: messages from device to device through a communicator of each link's own, as NCCL has them."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ..topology import Topology
from .message import Layout, Message, offsets
from .shared_transport import SharedTransport
from .transport import Expected, Transport


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
        self._on_device: list[tuple[Any, torch.Tensor]] = []
        super().start_step(incoming)

    def blank(self, layouts: Sequence[Layout]) -> Message:
        """See `Transport`; the buffer is on the device, the header beside it."""
        places = offsets(tuple(layouts), 0)
        buffer = torch.empty(places[-1], dtype=torch.uint8, device=self.device)
        return Message(layouts, places, buffer, np.zeros(1 + len(layouts)))

    def _post_receive(self, message: Message, source: int, number: int) -> Any:
        ahead = dist.irecv(torch.from_numpy(message.header), src=source, tag=number)
        group = self._groups[source, self.rank]
        return ahead, dist.irecv(message.buffer, src=source, group=group) if len(message.buffer) else None

    def _post_send(self, message: Message, target: int, number: int, ready: float) -> None:
        del ready  # what is sent need not have been computed yet
        header = torch.from_numpy(message.header)
        self._sends[target].append((dist.isend(header, dst=target, tag=number), header))
        if len(message.buffer):
            work = dist.isend(message.buffer, dst=target, group=self._groups[self.rank, target])
            self._on_device.append((work, message.buffer))

    def receive(self, key: Any) -> tuple[list[torch.Tensor], float]:
        """See `Transport`; what comes after it on this device's stream waits for the message."""
        source = self._source[key]
        while key not in self._posted:
            self._post(source)
        (ahead, rest), message = self._posted.pop(key)
        self._next(source)
        ahead.wait()
        self._free(source, self._acknowledges.get(key, 0))
        begin = self._mark()
        if rest is not None:
            rest.wait()
        self._waits.append((begin, self._mark()))
        return message.tensors(), 0.0

    def _wait(self, work: Any) -> None:
        ahead, rest = work
        ahead.wait()
        if rest is not None:
            rest.wait()

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
        for work, _ in self._on_device:
            work.wait()
        self._on_device.clear()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.transfer_s = sum(begin.elapsed_time(end) / 1e3 for begin, end in self._waits)
        else:
            self.transfer_s = sum(end - begin for begin, end in self._waits)


def make_transport(topology: Topology, rank: int, device: torch.device) -> Transport:
    """The transport of a topology; all workers of a group call it together.

    Direct between GPUs of which each has a worker to itself, else through host memory, which workers of one host share.
    """
    if can_go_direct(topology) and dist.is_nccl_available():
        return DirectTransport(topology, rank, device)
    if sum(device.kind != "cuda" for device in topology.devices) > 1:
        return SharedTransport(topology, rank, device)
    return Transport(topology, rank, device)
