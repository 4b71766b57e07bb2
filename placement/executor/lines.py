"""Lines: messages from one worker to another of the same host, through memory that both have mapped.

The receiver of a line makes it: anonymous memory, used as a ring, and a pipe. The sender opens both through `/proc`, where the
kernel lets in only processes of the same user. A message is written into the ring, and a record on the pipe says where it is;
a message that finds no room goes another way, and its record says so. Nobody is told when a message has been copied out: which
of them have, a sender knows from the schedule.
"""

import mmap
import os
import select
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

RING_BYTES = 2**25
"""Memory of a line; only what messages have touched takes room."""
LARGEST_BYTES = 2**23
"""Larger messages go another way, so that several find room."""

_ALIGN = 64
_ELSEWHERE = -1
_RECORD = struct.Struct("=q")
_RECORDS_BYTES = 512 * _RECORD.size


class Arriving:
    """A message that a receiver waits for.

    Args:
        line: where it comes in.
        buffer: where it goes, bytes.
        elsewhere: starts receiving it another way; returns an object to wait for.
    """

    def __init__(self, line: "Incoming", buffer: torch.Tensor, elsewhere: Callable[[], Any]):
        self.line = line
        self.buffer = buffer
        self.elsewhere = elsewhere
        self.arrived = False
        self.work: Any = None

    def wait(self) -> None:
        """Return once it is in the buffer; what was sent before it comes in first."""
        while not self.arrived:
            self.line.take_next()
        if self.work is not None:
            self.work.wait()


class Incoming:
    """The receiver's end of a line.

    Args:
        peer: the worker that sends.
        timeout_s: a wait for a message ends with an error after so long.

    Raises:
        OSError: if the system gives no memory or no pipe.
    """

    def __init__(self, peer: int, timeout_s: float):
        self.peer = peer
        self.timeout_s = timeout_s
        memory = os.memfd_create("segue-line", os.MFD_CLOEXEC)
        self._memory = os.fdopen(memory, "r+b", buffering=0)
        os.ftruncate(memory, RING_BYTES)
        reading, writing = os.pipe()
        self._pipe = os.fdopen(reading, "rb", buffering=0)
        self._writing = os.fdopen(writing, "wb", buffering=0)
        self._ring = _mapped(memory)
        self._ready = select.poll()
        self._ready.register(reading, select.POLLIN)
        self._records: deque[int] = deque()
        self._expected: deque[Arriving] = deque()

    @property
    def descriptors(self) -> tuple[int, int]:
        """This process's numbers of the memory and of the pipe's end for writing, by which the sender opens them."""
        return self._memory.fileno(), self._writing.fileno()

    def settle(self) -> None:
        """The sender has opened the line: when it ends, this end of the pipe is to hear it."""
        self._memory.close()
        self._writing.close()

    def expect(self, buffer: torch.Tensor, elsewhere: Callable[[], Any]) -> Arriving:
        """Say where the next message goes; see `Arriving`."""
        self._expected.append(Arriving(self, buffer, elsewhere))
        return self._expected[-1]

    def take_next(self) -> None:
        """Wait for a message and copy it out of the ring.

        Raises:
            RuntimeError: if the sender has ended or says nothing, in gloo's words.
        """
        if not self._records:
            self._read()
        start, arriving = self._records.popleft(), self._expected.popleft()
        if start == _ELSEWHERE:
            arriving.work = arriving.elsewhere()
        else:
            arriving.buffer.copy_(self._ring[start : start + len(arriving.buffer)])
        arriving.arrived = True

    def _read(self) -> None:
        if not self._ready.poll(1e3 * self.timeout_s):
            raise RuntimeError(f"Timed out waiting {1e3 * self.timeout_s:.0f}ms for a message of worker {self.peer}")
        records = os.read(self._pipe.fileno(), _RECORDS_BYTES)
        if not records:
            raise RuntimeError(f"Connection closed by peer: worker {self.peer}")
        self._records.extend(start for (start,) in _RECORD.iter_unpack(records))


class Outgoing:
    """The sender's end of a line.

    Args:
        process: the receiver's.
        memory: the receiver's number of the memory.
        writing: its number of the pipe's end for writing.
        timeout_s: as for `Incoming`.

    Raises:
        OSError: if they cannot be opened.
    """

    def __init__(self, process: int, memory: int, writing: int, timeout_s: float):
        self.timeout_s = timeout_s
        with open(f"/proc/{process}/fd/{memory}", "r+b", buffering=0) as file:
            self._ring = _mapped(file.fileno())
        pipe = os.open(f"/proc/{process}/fd/{writing}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._pipe = os.fdopen(pipe, "wb", buffering=0)
        self._held: deque[int] = deque()
        self._next = 0

    def room(self, nbytes: int) -> torch.Tensor | None:
        """Memory for the next message, if there is any."""
        start = self._next if self._held else 0
        size = -(-nbytes // _ALIGN) * _ALIGN
        if size > LARGEST_BYTES:
            return None
        end = RING_BYTES
        if self._held:
            oldest = self._held[0]
            if start <= oldest:
                end = oldest
            elif start + size > RING_BYTES:
                start, end = 0, oldest
        if start + size > end:
            return None
        self._held.append(start)
        self._next = start + size
        return self._ring[start : start + nbytes]

    def wait(self) -> None:
        """The oldest message has been copied out; its room is free."""
        self._held.popleft()

    def announce(self) -> None:
        """The message that was given room last is there."""
        self._write(self._held[-1])

    def announce_elsewhere(self) -> None:
        """The next message goes another way."""
        self._write(_ELSEWHERE)

    def _write(self, start: int) -> None:
        record = _RECORD.pack(start)
        try:
            os.write(self._pipe.fileno(), record)
        except BlockingIOError:
            # Thousands of records that nobody has read.
            self._write_when_read(record)

    def _write_when_read(self, record: bytes) -> None:
        ready = select.poll()
        ready.register(self._pipe, select.POLLOUT)
        if not ready.poll(1e3 * self.timeout_s):
            raise RuntimeError(f"Timed out waiting {1e3 * self.timeout_s:.0f}ms for a worker to read its messages")
        os.write(self._pipe.fileno(), record)


def _mapped(memory: int) -> torch.Tensor:
    return torch.frombuffer(mmap.mmap(memory, RING_BYTES), dtype=torch.uint8)


def where_am_i() -> tuple[str, ...] | None:
    """What two processes have in common that can have lines between them; none if this one can have none.

    Containers and network namespaces of one machine are taken for hosts of their own, as their links are.
    """
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return None
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        return boot, *(os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "pid"))
    except OSError:
        return None


def make_lines(willing: bool) -> tuple[dict[int, Incoming], dict[int, Outgoing]]:
    """Lines from and to every worker of this host; all workers of the group call it together.

    Args:
        willing: whether this worker's messages are in host memory.
    """
    rank, timeout_s = dist.get_rank(), _timeout_s()
    place = where_am_i() if willing else None
    incoming: dict[int, Incoming] = {}
    try:
        for peer in range(dist.get_world_size() if place is not None else 0):
            if peer != rank:
                incoming[peer] = Incoming(peer, timeout_s)
    except OSError:
        incoming = {}
    offers = _gather((place, os.getpid(), {peer: line.descriptors for peer, line in incoming.items()}))
    outgoing: dict[int, Outgoing] = {}
    for peer, (other, process, descriptors) in enumerate(offers):
        if peer != rank and place is not None and other == place and rank in descriptors:
            try:
                outgoing[peer] = Outgoing(process, *descriptors[rank], timeout_s)
            except OSError:
                continue
    opened = _gather(list(outgoing))
    incoming = {peer: line for peer, line in incoming.items() if rank in opened[peer]}
    for line in incoming.values():
        line.settle()
    return incoming, outgoing


def _gather(value: Any) -> list[Any]:
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _timeout_s() -> float:
    """After how long the group's own messages give up."""
    return dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu")).options._timeout.total_seconds()
