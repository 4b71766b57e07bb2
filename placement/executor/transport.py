"""Messages between workers: all tensors of a message in one buffer, received ahead, over torch.distributed."""

import time
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ..topology import Topology
from .channels import Channels
from .message import Layout, Message, framed, header_bytes, layouts_of, offsets, payload_bytes

RECEIVES_AHEAD = 3
"""Messages of a link that have a buffer waiting for them."""

AHEAD_BYTES = 2.0**16
"""More receives are posted ahead on a link, as long as all their buffers together are smaller than this."""


AWAITED_S = 2e-4
"""A wait that took longer was for a message that had not come in before."""


@dataclass
class Expected:
    """A message to be received: what identifies it, what is in it, and how many of this worker's the sender has taken in."""

    key: Any
    layouts: tuple[Layout, ...]
    acknowledges: int = 0

    @cached_property
    def payload(self) -> int:
        """Bytes of the tensors' elements."""
        return payload_bytes(self.layouts)


class Transport:
    """Sends and receives one step's messages for one worker.

    Messages of one link arrive in the order in which they are sent; their tag is their number on the link. Buffers are host
    memory (pinned where there is a GPU). Links between emulated devices deliver a message at the declared time: the sender
    stamps it, the receiver waits for the stamp. Between real devices the stamp says when it was ready, and the receiver
    notes how long the first message of each link was on its way.

    A step receives and sends as it goes (`start_step`, `send`, `receive`, `finish_step`). A move first makes all its messages
    (`blank`, `pack`), and posts them once every worker has (`expect`, `dispatch`).
    """

    line_bytes = 0

    def __init__(self, topology: Topology, rank: int, device: torch.device):
        self.rank = rank
        self.device = device
        self.pinned = device.type == "cuda"
        self.emulated = topology.devices[rank].kind == "emulated"
        self.real = [not self.emulated and device.kind != "emulated" for device in topology.devices]
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
        self.first_messages = np.full((2, self.num_devices), np.nan)
        self._firsts = {messages[0].key for messages in incoming.values() if messages}
        self._numbers = np.zeros(self.num_devices, int)
        self._expected = np.zeros(self.num_devices, int)
        self._sends: dict[int, deque[tuple[Any, torch.Tensor | None]]] = defaultdict(deque)
        self._gone = np.zeros(self.num_devices, int)
        self._ahead: dict[int, deque[int]] = {source: deque() for source in incoming}
        self._waiting = {source: deque(messages) for source, messages in incoming.items()}
        self._posted: dict[Any, tuple[Any, Any]] = {}
        self._source = {message.key: source for source, messages in incoming.items() for message in messages}
        self._acknowledges = {m.key: m.acknowledges for messages in incoming.values() for m in messages}
        for source in incoming:
            self._post_ahead(source)

    def _post_ahead(self, source: int) -> None:
        """Post receives of a link until enough are waiting."""
        waiting, ahead = self._waiting.get(source), self._ahead.get(source, ())
        while waiting and (len(ahead) < RECEIVES_AHEAD or sum(ahead) + waiting[0].payload < AHEAD_BYTES):
            self._post(source)

    def _post(self, source: int) -> None:
        expected = self._waiting[source].popleft()
        self._ahead[source].append(expected.payload)
        self.expect(expected.key, source, self.blank(expected.layouts))

    def blank(self, layouts: Sequence[Layout]) -> Message:
        """A message with nothing in it yet."""
        places = offsets(tuple(layouts), header_bytes(len(layouts)))
        return framed(layouts, places, torch.empty(places[-1], dtype=torch.uint8, pin_memory=self.pinned))

    def pack(self, tensors: Sequence[torch.Tensor]) -> Message:
        """A message of these tensors."""
        message = self.blank(layouts_of(tensors))
        message.fill(tensors, non_blocking=self.pinned)
        return message

    def expect(self, key: Any, source: int, message: Message) -> None:
        """Start receiving the next message of a link into `message`; `receive` knows it as `key`."""
        self._source[key] = source
        self._posted[key] = self._post_receive(message, source, self._next_number(source)), message

    def _next_number(self, source: int) -> int:
        """The number on its link of the next message that is received."""
        self._expected[source] += 1
        return int(self._expected[source]) - 1

    def _post_receive(self, message: Message, source: int, number: int) -> Any:
        return dist.irecv(message.buffer, src=source, tag=number)

    def send(self, target: int, tensors: Sequence[torch.Tensor], ready: float) -> None:
        """Start sending `tensors` to worker `target`; `ready` is when they were done (`time.monotonic`)."""
        self.dispatch(target, self.pack(tensors), ready)

    def dispatch(self, target: int, message: Message, ready: float) -> None:
        """Start sending a message that `pack` has made."""
        self._post_send(message, target, int(self._numbers[target]), ready)
        self._count(target, message.payload)

    def _count(self, target: int, payload: int) -> None:
        self._numbers[target] += 1
        self.sent_bytes[target] += payload

    def _post_send(self, message: Message, target: int, number: int, ready: float) -> None:
        if self.pinned:
            torch.cuda.current_stream(self.device).synchronize()
            ready = time.monotonic()
        message.header[0] = self._stamp(target, message.payload, ready)
        work = dist.isend(message.buffer, dst=target, tag=number)
        self._sends[target].append((work, message.buffer))

    def _stamp(self, target: int, payload: int, ready: float) -> float:
        if self.channels is None:
            return ready
        seconds = float(self.latency[target] + payload * self.seconds_per_byte[target])
        self.transfer_s += seconds
        return self.channels.take(self.rank, target, ready, seconds)

    def receive(self, key: Any) -> tuple[list[torch.Tensor], float]:
        """Wait for a message; returns its tensors and the time before which it has not arrived."""
        source = self._source[key]
        while key not in self._posted:
            # The sender is far ahead: messages for later come before this one.
            self._post(source)
        work, message = self._posted.pop(key)
        self._next(source)
        begin = time.monotonic()
        work.wait()
        end = time.monotonic()
        self._free(source, self._acknowledges.get(key, 0))
        tensors, stamp = self._contents(work, message)
        if not self.emulated:
            self.transfer_s += end - begin
        if self.real[source]:
            if key in self._firsts and self._awaited(work, end - begin):
                self.first_messages[:, source] = sum(tensor.nbytes for tensor in tensors), end - stamp
            stamp = 0.0
        if self.pinned:
            tensors = [tensor.to(self.device, non_blocking=True) for tensor in tensors]
        return tensors, stamp

    def _awaited(self, work: Any, seconds: float) -> bool:
        """Whether a message had not come in when it was asked for; to take one in that has takes few `seconds`."""
        del work
        return seconds > AWAITED_S

    def _contents(self, work: Any, message: Message) -> tuple[list[torch.Tensor], float]:
        """What is in a message that has come in, and its stamp."""
        del work  # it has put all into the message
        return message.tensors(), float(message.header[0])

    def _next(self, source: int) -> None:
        """Another message of a link is taken out."""
        if self._ahead.get(source):
            self._ahead[source].popleft()
        self._post_ahead(source)

    def _free(self, target: int, acknowledged: int) -> None:
        """Free the buffers of what another worker has taken in."""
        while self._gone[target] < acknowledged:
            work, _ = self._sends[target].popleft()
            work.wait()
            self._gone[target] += 1

    def drain(self) -> None:
        """Wait for every message that has been posted and not been received; what is in them is lost.

        It ends a move: the workers have to agree on something before one of them sends the next message.
        """
        for key in list(self._posted):
            self._wait(self._posted.pop(key)[0])
        self.finish_step()

    def _wait(self, work: Any) -> None:
        work.wait()

    def finish_step(self) -> None:
        """Wait until everything sent has left."""
        for sends in self._sends.values():
            for work, _ in sends:
                work.wait()
        self._sends.clear()
