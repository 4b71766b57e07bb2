"""`SharedTransport`: messages between workers of one host through shared memory, all others over the network."""

from collections.abc import Sequence
from typing import Any

import torch

from ..topology import Topology
from .lines import make_lines
from .transport import Layout, Message, Transport, framed, header_bytes, offsets


class SharedTransport(Transport):
    """Sends to workers of this host through a line each (see `lines`); what finds no room there goes over gloo.

    A sender writes a message straight into the ring and never waits. It takes the room back as the schedule tells it that
    the receiver has taken the message in, at the latest when the step is over.

    Args:
        topology: one worker for each device; all of them construct this together.
        rank: this worker.
        device: where its tensors live; a GPU's worker has no lines.
    """

    def __init__(self, topology: Topology, rank: int, device: torch.device):
        super().__init__(topology, rank, device)
        self._incoming, self._outgoing = make_lines(willing=device.type == "cpu")

    def _post_receive(self, message: Message, source: int, number: int) -> Any:
        def over_gloo() -> Any:
            return super(SharedTransport, self)._post_receive(message, source, number)

        line = self._incoming.get(source)
        return over_gloo() if line is None else line.expect(message.buffer, over_gloo)

    def send(self, target: int, tensors: Sequence[torch.Tensor], ready: float) -> None:
        """See `Transport`."""
        message = self._in_ring(target, [Layout(tuple(tensor.shape), tensor.dtype) for tensor in tensors])
        if message is None:
            super().send(target, tensors, ready)
            return
        message.fill(tensors, non_blocking=False)
        self._stamp(message, target, ready)
        self._announce(target)
        self._count(target, message)

    def _in_ring(self, target: int, layouts: list[Layout]) -> Message | None:
        """A message with nothing in it yet that lies in the ring already, if there is room for it."""
        line = self._outgoing.get(target)
        if line is None:
            return None
        places = offsets(layouts, header_bytes(len(layouts)))
        room = line.room(places[-1])
        return None if room is None else framed(layouts, places, room)

    def _announce(self, target: int) -> None:
        line = self._outgoing[target]
        line.announce()
        self._sends[target].append((line, None))

    def _post_send(self, message: Message, target: int, number: int, ready: float) -> None:
        line = self._outgoing.get(target)
        room = None if line is None else line.room(len(message.buffer))
        if room is not None:
            self._stamp(message, target, ready)
            room.copy_(message.buffer)
            self._announce(target)
            return
        if line is not None:
            line.announce_elsewhere()
        super()._post_send(message, target, number, ready)
