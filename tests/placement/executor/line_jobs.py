"""What the workers of the shared transport's tests do; importable by name in a new process."""

import os
import time
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from segue.placement.executor import executor as executor_module
from segue.placement.executor import lines
from segue.placement.executor.lines import Outgoing
from segue.placement.executor.message import layouts_of
from segue.placement.executor.shared_transport import SharedTransport
from segue.placement.executor.transport import Expected, Transport
from segue.placement.topology import Topology

from . import jobs

FIRST_BYTES, PAUSE_S = 4_000_000, 1.0
WAYS = ("shared", "gloo", "apart", "narrow")


def train_every_way(topology: Topology, cases: list[str]) -> dict[str, Any]:
    """For each case: how it trains while it moves at random, every way; and where the messages went, by way."""
    results: dict[str, Any] = {case: [] for case in cases}
    went: dict[str, list[bool]] = {way: [] for way in WAYS}
    for way in WAYS:
        with ExitStack() as changed:
            for change in _changes(way):
                changed.enter_context(change)
            changed.enter_context(_recording(went[way]))
            for case in cases:
                results[case].append(jobs.train(case, topology, 1))
    return {"results": results, "went": went}


def _changes(way: str) -> list[Any]:
    """`gloo` has no lines; `apart` every worker on a host of its own; in `narrow` few messages find room."""
    if way == "gloo":
        return [mock.patch.object(executor_module, "make_transport", Transport)]
    if way == "apart":
        return [mock.patch.object(lines, "whereabouts", return_value=("host", str(dist.get_rank())))]
    if way == "narrow":
        return [narrow_lines()]
    return []


def narrow_lines() -> Any:
    """Lines in which few messages find room."""
    return mock.patch.multiple(lines, LINE_BYTES=4096, LARGEST_BYTES=1024)


def _recording(sent: list[bool]) -> Any:
    """Write down of every message that is sent to a worker with a line whether it went over that."""
    send = Outgoing.send

    def recorded(*args: Any) -> bool:
        sent.append(send(*args))
        return sent[-1]

    return mock.patch.object(Outgoing, "send", recorded)


def open_files(topology: Topology) -> list[int]:
    """How many files a worker has open after each of several executors."""
    counts = []
    for _ in range(3):
        executor = jobs.make_executor("branches", topology)
        executor.step(jobs.batch_of("branches", 0))
        del executor
        counts.append(len(os.listdir("/proc/self/fd")))
    return counts


def first_messages(topology: Topology, order: list[int]) -> dict[str, list[list[float]]]:
    """Over shared memory, and over gloo: what each of two workers notes of the other's first message.

    Worker 1 waits `PAUSE_S` for a long one and a short one, and asks for them in the given order; worker 0 asks for its own
    long after it came.
    """
    rank, cpu = dist.get_rank(), torch.device("cpu")
    large, small = torch.ones(FIRST_BYTES // 4), torch.ones(1)
    noted = {}
    for way, transport in (("shared", SharedTransport(topology, rank, cpu)), ("gloo", Transport(topology, rank, cpu))):
        expected = [large] if rank == 0 else [large, small]
        messages = [Expected(number, layouts_of([tensor])) for number, tensor in enumerate(expected)]
        transport.start_step({1 - rank: messages})
        if rank == 1:
            transport.send(0, [large], time.monotonic())
        time.sleep(PAUSE_S * (1 - rank))
        if rank == 0:
            transport.send(1, [large], time.monotonic())
            transport.send(1, [small], time.monotonic())
        for number in order if rank == 1 else [0]:
            transport.receive(number)
        transport.finish_step()
        noted[way] = transport.first_messages[:, 1 - rank].tolist()
        dist.barrier()
    return noted
