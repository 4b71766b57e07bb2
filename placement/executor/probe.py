"""`probe`: what links and instructions cost on this machine, as the executor's own messages and instructions see them."""

import time
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from ..topology import Link, Topology
from .message import Layout
from .probe_instructions import probe_instructions
from .shared_transport import SharedTransport
from .transport import Expected, Transport

_SMALL, _LARGE = 1, 1 << 22
_REPEATS = 25


def probe(topology: Topology) -> Topology:
    """Time messages between the workers, and what instructions cost besides their ops; call it on every worker.

    What is declared of emulated devices and the links between them stays. Other links get half the shortest round trip of
    one byte as latency, and the bandwidth at which 4 MiB travel. Where no device is emulated, all get what
    `probe_instructions` finds.

    Returns:
        The topology with what was measured, the same on every worker.
    """
    topology = _probe_links(topology)
    if any(device.kind == "emulated" for device in topology.devices):
        return topology
    return probe_instructions(topology)


def _probe_links(topology: Topology) -> Topology:
    rank, count = dist.get_rank(), topology.num_devices
    # As the executor's, but that nothing is copied to a GPU.
    transport = SharedTransport(topology, rank, torch.device("cpu"))
    measured: dict[tuple[int, int], tuple[float, float]] = {}
    for a in range(count):
        for b in range(a + 1, count):
            if "emulated" in (topology.devices[a].kind, topology.devices[b].kind):
                continue
            if rank in (a, b):
                peer = b if rank == a else a
                small = _round_trip(transport, _SMALL, peer, rank == a) / 2
                large = _round_trip(transport, _LARGE, peer, rank == a) / 2
                if rank == a:
                    # Only who begins sees whole round trips: the other's first message is under way before it looks.
                    measured[a, b] = (small, _LARGE / max(1e-9, large - small))
            dist.barrier()
    everyone: list[Any] = [None] * count
    dist.all_gather_object(everyone, measured)
    names = [device.name for device in topology.devices]
    found = {}
    for a, b, (latency, bandwidth) in ((a, b, v) for part in everyone for (a, b), v in part.items()):
        found[names[a], names[b]] = found[names[b], names[a]] = (latency, bandwidth)
    links = [_measured(link, found.get((link.source, link.target))) for link in topology.links]
    return replace(topology, links=tuple(links))


def _measured(link: Link, found: tuple[float, float] | None) -> Link:
    return replace(link, latency_s=found[0], bandwidth_bytes_per_s=found[1]) if found else link


def _round_trip(transport: Transport, size: int, peer: int, first: bool) -> float:
    layouts = (Layout((size,), torch.uint8),)
    # Who answers has taken this message in too.
    answers = [Expected(number, layouts, number + int(first)) for number in range(_REPEATS)]
    transport.start_step({peer: answers})
    tensor = torch.zeros(size, dtype=torch.uint8)
    times = []
    for number in range(_REPEATS):
        start = time.perf_counter()
        if first:
            transport.send(peer, [tensor], start)
            transport.receive(number)
        else:
            transport.receive(number)
            transport.send(peer, [tensor], start)
        times.append(time.perf_counter() - start)
    transport.finish_step()
    return min(times)
