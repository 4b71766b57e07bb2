"""`SharedTransport`: messages between workers of one host through shared memory, all others over the network."""

from collections.abc import Sequence
from typing import Any

import torch

from ..topology import Topology
from .lines import Arriving, make_lines
from .message import Layout, Message, layouts_of, payload_bytes
from .transport import Transport


class SharedTransport(Transport):
    """Sends to workers of this host through a line each (see `lines`); what finds no room there goes over gloo.

    A sender writes a message straight into the line's memory and never waits. It takes the room back as the schedule tells
    it that the receiver has taken the message in, or the receiver itself, at the latest when the step is over: all workers
    have to agree that it is before one of them starts the next.

    Args:
        topology: one worker for each device; all of them construct this together. A GPU's worker has no lines.
        rank: this worker.
        device: where its tensors live.
    """

    def __init__(self, topology: Topology, rank: int, device: torch.device):
        super().__init__(topology, rank, device)
        self._incoming, self._outgoing = make_lines(willing=topology.devices[rank].kind != "cuda")

    @property
    def line_bytes(self) -> int:
        """Memory of this worker that messages through lines have lain in, since it was last given back."""
        return sum(line.touched_bytes for line in self._incoming.values())

    def drain(self) -> None:
        """See `Transport`; what has moved was larger than the messages of a step, and its memory is given back."""
        super().drain()
        for line in self._incoming.values():
            line.give_back()

    def _post(self, source: int) -> None:
        line = self._incoming.get(source)
        if line is None:
            super()._post(source)
            return
        expected = self._waiting[source].popleft()
        self._ahead[source].append(expected.payload)
        number = self._next_number(source)
        # Nearly always it comes through the line, and needs no buffer.
        self._posted[expected.key] = (
            line.expect(expected.layouts, lambda: self._detour(self.blank(expected.layouts), source, number)),
            None,
        )

    def _post_receive(self, message: Message, source: int, number: int) -> Any:
        line = self._incoming.get(source)
        if line is None:
            return super()._post_receive(message, source, number)
        return line.expect(tuple(message.layouts), lambda: self._detour(message, source, number))

    def _detour(self, message: Message, source: int, number: int) -> tuple[Any, Message]:
        return super()._post_receive(message, source, number), message

    def _contents(self, work: Any, message: Message) -> tuple[list[torch.Tensor], float]:
        return (work.tensors, work.stamp) if isinstance(work, Arriving) else super()._contents(work, message)

    def _awaited(self, work: Any, seconds: float) -> bool:
        return work.awaited if isinstance(work, Arriving) else super()._awaited(work, seconds)

    def send(self, target: int, tensors: Sequence[torch.Tensor], ready: float) -> None:
        """See `Transport`."""
        if target not in self._outgoing:
            super().send(target, tensors, ready)
            return
        layouts = layouts_of(tensors)
        if not self._send_over_line(target, layouts, tensors, ready):
            super()._post_send(self.pack(tensors), target, int(self._numbers[target]), ready)
        self._count(target, payload_bytes(layouts))

    def _post_send(self, message: Message, target: int, number: int, ready: float) -> None:
        on_line = target in self._outgoing
        if not on_line or not self._send_over_line(target, tuple(message.layouts), message.tensors(), ready):
            super()._post_send(message, target, number, ready)

    def _send_over_line(
        self, target: int, layouts: tuple[Layout, ...], tensors: Sequence[torch.Tensor], ready: float
    ) -> bool:
        line = self._outgoing[target]
        sent = line.send(layouts, tensors, lambda: self._stamp(target, payload_bytes(layouts), ready))
        if sent:
            self._sends[target].append((line, None))
        return sent
