"""`topology_of_run`: the devices of the workers that are running."""

import os
import socket
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..cores import usable_cores
from ..discover import ASSUMED_BANDWIDTH_BYTES_PER_S, ASSUMED_LATENCY_S, discover
from ..errors import SegueError
from ..presets import preset
from ..topology import Link, Topology


@dataclass(frozen=True)
class _Seat:
    """Where a worker sits: `node` counts torchrun's hosts; `found` are a host's own devices, from its first worker."""

    node: int
    host: str
    found: Topology | str | None = None


def topology_of_run(spec: str = "") -> Topology:
    """The devices of this run in worker order; call it on every worker, after `join` and before anything pins a core.

    Without `spec`, it is what `segue launch` was given. Where torchrun has started the workers, every host looks for its own
    devices, and the links are assumed until `probe` measures them.

    Args:
        spec: a topology's file, or a preset's name. Its devices are put in the workers' order: by host, where it has several.

    Raises:
        SegueError: if there is no such topology, or if the workers of a host are not as many as its devices.
    """
    told = os.environ.get("SEGUE_TOPOLOGY", "")
    if spec or told:
        topology = _read(spec or told)
        return topology if "SEGUE_STORE" in os.environ else order_by_host(topology, _seats(None))
    local, count = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return _joined(_seats(_found_here(count) if local == 0 else None))


def _read(spec: str) -> Topology:
    return Topology.load(spec) if Path(spec).suffix in (".yaml", ".yml", ".json") else preset(spec)


def _seats(found: Topology | str | None) -> list[_Seat]:
    """Every worker's seat, in worker order."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, _Seat(int(os.environ.get("GROUP_RANK", "0")), socket.gethostname(), found))
    nodes: dict[str, set[int]] = defaultdict(set)
    for seat in everyone:
        nodes[seat.host].add(seat.node)
    # Containers and network namespaces may share a name.
    return [seat if len(nodes[seat.host]) == 1 else replace(seat, host=f"{seat.host}:{seat.node}") for seat in everyone]


def _found_here(workers: int) -> Topology | str:
    """This host's devices, one for each of its workers, or why there are none: every worker must hear of it."""
    topology = discover() if torch.cuda.is_available() else discover(max(1, len(usable_cores()) // workers))
    names = [device.name for device in topology.devices]
    if len(names) < workers:
        return f"{workers} workers, but {len(names)} devices ({', '.join(names)}); start at most one for each"
    links = [link for link in topology.links if {link.source, link.target} <= set(names[:workers])]
    return replace(topology, devices=topology.devices[:workers], links=tuple(links))


def _joined(seats: Sequence[_Seat]) -> Topology:
    """The hosts' own topologies as one; what is between hosts is assumed."""
    parts = {seat.host: seat.found for seat in seats if seat.found is not None}
    devices, links = [], []
    for host, part in parts.items():
        if not isinstance(part, Topology):
            raise SegueError(f"host {host}: {part}")
        prefix = f"{host}." if len(parts) > 1 else ""
        devices += [replace(device, name=prefix + device.name, host=host) for device in part.devices]
        links += [replace(link, source=prefix + link.source, target=prefix + link.target) for link in part.links]
    links += [
        Link(a.name, b.name, ASSUMED_LATENCY_S, ASSUMED_BANDWIDTH_BYTES_PER_S)
        for a in devices
        for b in devices
        if a.host != b.host
    ]
    return order_by_host(
        Topology("these-hosts" if len(parts) > 1 else "this-machine", tuple(devices), tuple(links)), seats
    )


def order_by_host(topology: Topology, seats: Sequence[_Seat]) -> Topology:
    """The topology with the devices in worker order: each worker gets the next device of its host.

    Hosts of the topology are the workers' hosts of the same name; where the names differ, its first host is torchrun's first
    node, and so on.

    Raises:
        SegueError: if a host has not as many devices as workers.
    """
    hosts = list(dict.fromkeys(device.host for device in topology.devices))
    if len(hosts) == 1:
        return topology
    nodes = [seat.host for seat in sorted(seats, key=lambda seat: seat.node)]
    names = list(dict.fromkeys(nodes))
    if len(names) != len(hosts):
        raise SegueError(f"topology {topology.name}: hosts {', '.join(hosts)}, but workers run on {', '.join(names)}")
    stands_for = {name: name for name in names} if set(names) == set(hosts) else dict(zip(names, hosts, strict=True))
    left = {host: [device for device in topology.devices if device.host == host] for host in hosts}
    for name, host in stands_for.items():
        if nodes.count(name) != len(left[host]):
            raise SegueError(
                f"topology {topology.name}: host {host} has {len(left[host])} devices, but {nodes.count(name)} workers "
                f"run on {name}; start one for each"
            )
    return replace(topology, devices=tuple(left[stands_for[seat.host]].pop(0) for seat in seats))
