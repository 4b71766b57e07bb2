"""Lines: messages from one worker to another of the same host, through memory that both have mapped.

The receiver of a line makes it: anonymous memory, and two pipes. The sender opens them through `/proc`, where the kernel lets
in only processes of the same user. A message is written into the memory, and a record on the first pipe says where it is; a
message that finds no room goes another way, and its record says so. Which messages have been copied out, a sender knows from
the schedule; of large ones it is told through the second pipe, so that their room is soon used again.
"""

import mmap
import os
import select
import struct
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from .message import Layout, Message, header_bytes, laid_out, offsets, put

LINE_BYTES = 2**27
"""Memory of a line; only what messages have touched takes room."""
LARGEST_BYTES = 2**25
"""Larger messages go another way, so that several find room."""

SPINS = 100
"""Looks at a line, with the core offered to others between them, before a wait puts the worker to sleep: some 0.2 ms."""

TOLD_BYTES = 2**18
"""A sender is told what has been copied out when it is so much."""

_ALIGN = 64
_ELSEWHERE = -1
_RECORD = struct.Struct("=q")
_RECORDS_BYTES = 512 * _RECORD.size


class Memory:
    """Memory that two processes have mapped, with messages in it: a header and tensors, as in a `Message`.

    Args:
        memory: descriptor of the memory.
    """

    def __init__(self, memory: int):
        self._mapped = mmap.mmap(memory, LINE_BYTES)
        self._bytes = torch.frombuffer(self._mapped, dtype=torch.uint8)
        self._header = self._bytes.numpy().view(np.float64)
        self._typed: dict[torch.dtype, torch.Tensor] = {}

    def write(self, start: int, layouts: tuple[Layout, ...], tensors: Sequence[torch.Tensor], stamp: float) -> None:
        """Write the message that begins at `start`, bytes; see `Message` for the rest."""
        header, places = start // 8, _places(layouts)
        self._header[header] = stamp
        for i, (layout, tensor) in enumerate(zip(layouts, tensors, strict=True)):
            self._header[header + 1 + i] = put(*self._place(start + places[i], layout), tensor, non_blocking=False)

    def read(self, start: int, layouts: tuple[Layout, ...]) -> tuple[list[torch.Tensor], float]:
        """Tensors and stamp of the message that begins at `start`, copied out."""
        stamp, *codes = self._header[start // 8 : start // 8 + 1 + len(layouts)].tolist()
        places = _places(layouts)
        tensors = [
            laid_out(*self._place(start + places[i], layout), layout.shape, int(codes[i])).clone()
            for i, layout in enumerate(layouts)
        ]
        return tensors, stamp

    def give_back(self) -> None:
        """Give all pages back to the system, where it takes them; what was in them is lost."""
        with suppress(OSError):
            self._mapped.madvise(mmap.MADV_REMOVE)

    def _place(self, place: int, layout: Layout) -> tuple[torch.Tensor, int]:
        """The memory as elements of a tensor's type, and the first of them behind byte `place`."""
        typed = self._typed.get(layout.dtype)
        if typed is None:
            typed = self._typed[layout.dtype] = self._bytes.view(layout.dtype)
        return typed, place // layout.dtype.itemsize


@lru_cache(4096)
def _places(layouts: tuple[Layout, ...]) -> list[int]:
    return offsets(layouts, header_bytes(len(layouts)))


class Arriving:
    """A message that a receiver waits for.

    Args:
        line: where it comes in.
        layouts: of its tensors.
        elsewhere: starts receiving it another way; returns what to wait for, and what it will then be in.

    Attributes:
        tensors: what has come in.
        stamp: what its sender wrote, see `Transport`.
        awaited: whether it had not come in when it was asked for.
    """

    def __init__(self, line: "Incoming", layouts: tuple[Layout, ...], elsewhere: Callable[[], tuple[Any, Message]]):
        self.line = line
        self.layouts = layouts
        self.elsewhere = elsewhere
        self.announced = False
        self.detour: tuple[Any, Message] | None = None
        self.tensors: list[torch.Tensor] = []
        self.stamp = 0.0
        self.awaited = False

    def wait(self) -> None:
        """Return once it has come in; what was sent before it is copied out first."""
        while not self.announced:
            self.awaited = not self.line.has_next()
            self.line.take_next()
        if self.detour is not None:
            work, message = self.detour
            work.wait()
            self.tensors, self.stamp = message.tensors(), float(message.header[0])


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
        os.ftruncate(memory, LINE_BYTES)
        reading, writing = os.pipe()
        self._pipe = os.fdopen(reading, "rb", buffering=0)
        self._writing = os.fdopen(writing, "wb", buffering=0)
        told, telling = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._told = os.fdopen(told, "rb", buffering=0)
        self._telling = os.fdopen(telling, "wb", buffering=0)
        self._untold = self._untold_bytes = 0
        self._contents = Memory(memory)
        self._ready = select.poll()
        self._ready.register(reading, select.POLLIN)
        self._records: deque[int] = deque()
        self._expected: deque[Arriving] = deque()

    @property
    def descriptors(self) -> tuple[int, int, int]:
        """This process's numbers of the memory and of the sender's ends of the pipes, by which the sender opens them."""
        return self._memory.fileno(), self._writing.fileno(), self._told.fileno()

    @property
    def touched_bytes(self) -> int:
        """Memory that messages have lain in since it was given back; the system counts blocks of 512 bytes."""
        return 512 * os.fstat(self._memory.fileno()).st_blocks

    def give_back(self) -> None:
        """Free the memory that messages have lain in; all must have been copied out, and none be on its way."""
        self._contents.give_back()

    def settle(self) -> None:
        """The sender has opened the line: when it ends, this end of the pipe is to hear it."""
        self._writing.close()

    def expect(self, layouts: tuple[Layout, ...], elsewhere: Callable[[], tuple[Any, Message]]) -> Arriving:
        """Say what the next message is; see `Arriving`."""
        self._expected.append(Arriving(self, layouts, elsewhere))
        return self._expected[-1]

    def has_next(self) -> bool:
        """Whether another message is there already."""
        return bool(self._records or self._ready.poll(0))

    def take_next(self) -> None:
        """Wait for a message and copy it out.

        Raises:
            RuntimeError: if the sender has ended or says nothing, in gloo's words.
        """
        if not self._records:
            self._read()
        start, arriving = self._records.popleft(), self._expected.popleft()
        if start == _ELSEWHERE:
            arriving.detour = arriving.elsewhere()
        else:
            arriving.tensors, arriving.stamp = self._contents.read(start, arriving.layouts)
            self._tell(_places(arriving.layouts)[-1])
        arriving.announced = True

    def _tell(self, nbytes: int) -> None:
        """Another message has been copied out: a byte on the pipe for each, when they are worth it."""
        self._untold += 1
        self._untold_bytes += nbytes
        if self._untold_bytes >= TOLD_BYTES:
            # Where nobody has read for long, the schedule says it.
            with suppress(BlockingIOError):
                os.write(self._telling.fileno(), bytes(self._untold))
            self._untold = self._untold_bytes = 0

    def _read(self) -> None:
        if not self._spin() and not self._ready.poll(1e3 * self.timeout_s):
            raise RuntimeError(f"Timed out waiting {1e3 * self.timeout_s:.0f}ms for a message of worker {self.peer}")
        records = os.read(self._pipe.fileno(), _RECORDS_BYTES)
        if not records:
            raise RuntimeError(f"Connection closed by peer: worker {self.peer}")
        self._records.extend(start for (start,) in _RECORD.iter_unpack(records))

    def _spin(self) -> bool:
        """Whether there is a record by now or soon; to be woken from sleep takes longer than most short waits."""
        for _ in range(SPINS):
            if self._ready.poll(0):
                return True
            os.sched_yield()
        return False


class Outgoing:
    """The sender's end of a line.

    Args:
        process: the receiver's.
        descriptors: the receiver's numbers of the memory and of the pipes' ends, see `Incoming.descriptors`.
        timeout_s: as for `Incoming`.

    Raises:
        OSError: if they cannot be opened.
    """

    def __init__(self, process: int, descriptors: tuple[int, int, int], timeout_s: float):
        memory, writing, told = descriptors
        self.timeout_s = timeout_s
        with open(f"/proc/{process}/fd/{memory}", "r+b", buffering=0) as file:
            self._contents = Memory(file.fileno())
        pipe = os.open(f"/proc/{process}/fd/{writing}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._pipe = os.fdopen(pipe, "wb", buffering=0)
        pipe = os.open(f"/proc/{process}/fd/{told}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._told = os.fdopen(pipe, "rb", buffering=0)
        # Messages that have been copied out, by the schedule and by what was told, and those whose room is free.
        self._known = self._heard = self._freed = 0
        self._held: deque[int] = deque()
        self._taken: list[tuple[int, int]] = []

    def send(self, layouts: tuple[Layout, ...], tensors: Sequence[torch.Tensor], stamp: Callable[[], float]) -> bool:
        """Send a message, if there is room for it; else say that it goes another way.

        Args:
            layouts: of the tensors.
            tensors: what is sent.
            stamp: what goes with it; asked only if it is sent.
        """
        start = self._room(_places(layouts)[-1])
        if start is not None:
            self._contents.write(start, layouts, tensors, stamp())
        self._announce(_ELSEWHERE if start is None else start)
        return start is not None

    def _room(self, nbytes: int) -> int | None:
        """Where the next message begins, if there is room for it."""
        size = -(-nbytes // _ALIGN) * _ALIGN
        if size > LARGEST_BYTES:
            return None
        if self._held and size >= TOLD_BYTES:
            self._hear()
        start = 0
        # In the first gap, so that few pages are touched.
        for taken, end in self._taken:
            if taken - start >= size:
                break
            start = end
        if start + size > LINE_BYTES:
            return None
        insort(self._taken, (start, start + size))
        self._held.append(start)
        return start

    def wait(self) -> None:
        """By the schedule, another message has been copied out."""
        self._known += 1
        self._free()

    def _hear(self) -> None:
        """What the receiver has told."""
        with suppress(BlockingIOError):
            self._heard += len(os.read(self._told.fileno(), _RECORDS_BYTES))
        self._free()

    def _free(self) -> None:
        """Use the room of what has been copied out again."""
        while self._freed < max(self._known, self._heard):
            del self._taken[bisect_left(self._taken, (self._held.popleft(),))]
            self._freed += 1

    def _announce(self, start: int) -> None:
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


def whereabouts() -> tuple[str, ...] | None:
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
    place = whereabouts() if willing else None
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
                outgoing[peer] = Outgoing(process, descriptors[rank], timeout_s)
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
