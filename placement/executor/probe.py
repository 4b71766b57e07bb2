"""`probe`: what links and instructions cost on this machine, as the executor's own messages and instructions see them."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from scipy.optimize import root_scalar
from torch import nn

from ..clock import SimulatedClock
from ..placement import Placement, colocate
from ..topology import Link, Topology
from .executor import Executor

_SMALL, _LARGE = 1, 1 << 22
_REPEATS = 25
_STAGES, _WIDTH, _MICROBATCHES = 12, 16, 4
_WARM, _STEPS = 5, 25


def probe(topology: Topology) -> Topology:
    """Time messages between the workers, and what instructions cost besides their ops; call it on every worker.

    What is declared of emulated devices and the links between them stays. Other links get half the shortest round trip of
    one byte as latency, and the bandwidth at which 4 MiB travel. Where no device is emulated, all get the overhead at which
    the simulator says of a small chain over all of them what it takes on the executor.

    Returns:
        The topology with what was measured, the same on every worker.
    """
    topology = _probe_links(topology)
    if any(device.kind == "emulated" for device in topology.devices):
        return topology
    overhead_s = _probe_overhead(topology)
    return replace(topology, devices=tuple(replace(device, overhead_s=overhead_s) for device in topology.devices))


def _probe_overhead(topology: Topology) -> float:
    """Seconds an instruction at which the simulated step of a chain of tiny stages takes as long as the real one."""
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(*(nn.Linear(_WIDTH, _WIDTH) for _ in range(_STAGES)))
        batch = torch.randn(4 * _MICROBATCHES, _WIDTH), torch.randn(4 * _MICROBATCHES, _WIDTH)
    bare = replace(topology, devices=tuple(replace(device, overhead_s=0.0) for device in topology.devices))
    executor = Executor(
        model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        loss_fn=nn.MSELoss(),
        example_batch=batch,
        topology=bare,
        microbatches=_MICROBATCHES,
    )
    stage = np.minimum(np.arange(executor.graph.num_ops), _STAGES - 1)
    placement = Placement(colocate(stage % topology.num_devices, executor.graph), _MICROBATCHES)
    executor.apply(placement)
    times = []
    for _ in range(_WARM + _STEPS):
        executor.step(batch)
        times.append(executor.report.step_time_s if executor.report else 0.0)
    measured = float(np.median(times[_WARM:]))

    def excess(overhead_s: float) -> float:
        devices = tuple(replace(device, overhead_s=overhead_s) for device in bare.devices)
        costs = replace(executor.clock().costs, overhead_s=np.full(len(devices), overhead_s))
        clock = SimulatedClock(executor.graph, replace(bare, devices=devices), costs, executor.clock().sizes)
        return clock.step_time(placement.devices) - measured

    if excess(0.0) >= 0:
        return 0.0
    return root_scalar(excess, bracket=(0.0, measured)).root


def _probe_links(topology: Topology) -> Topology:
    rank, count = dist.get_rank(), topology.num_devices
    measured: dict[tuple[int, int], tuple[float, float]] = {}
    for a in range(count):
        for b in range(a + 1, count):
            if "emulated" in (topology.devices[a].kind, topology.devices[b].kind):
                continue
            if rank in (a, b):
                peer = b if rank == a else a
                small = _round_trip(_SMALL, peer, rank == a) / 2
                large = _round_trip(_LARGE, peer, rank == a) / 2
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


def _round_trip(size: int, peer: int, first: bool) -> float:
    buffer = torch.zeros(size, dtype=torch.uint8)
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        if first:
            dist.send(buffer, peer)
            dist.recv(buffer, peer)
        else:
            dist.recv(buffer, peer)
            dist.send(buffer, peer)
        times.append(time.perf_counter() - start)
    return min(times)
