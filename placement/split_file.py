"""Answers to a workload as files: the benchmark's own split form, and its maps from node to device."""

from collections.abc import Iterable
from os import PathLike
from typing import Any

import numpy as np

from .errors import SegueError
from .files import read_object, write_json
from .workload import CPU, Ints, Workload, whole


def read_split(path: str | PathLike, workload: Workload) -> Ints:
    """Read a split: `cpus` and `fpgas`, each a list of `{"nodes": [ids]}`.

    Returns:
        Device of every node, `int64[n]`: 0 for any of the CPUs, `i + 1` for the accelerator at place `i` of `fpgas`.

    Raises:
        SegueError: naming the file, the place in it and the reason: a node that is unknown, missing or listed twice.
    """
    where, record = str(path), read_object(path)
    pairs = [(node, CPU, label) for _, label, nodes in _parts(record, "cpus", where) for node in nodes]
    pairs += [(node, place + 1, label) for place, label, nodes in _parts(record, "fpgas", where) for node in nodes]
    return _devices(pairs, workload, where)


def write_split(
    path: str | PathLike, workload: Workload, devices: Ints, values: dict[str, float] | None = None
) -> None:
    """Write a split: one entry for each accelerator up to the last that is used, at least `accelerators` of them.

    Args:
        path: the file to write.
        workload: what was placed.
        devices: device of every node, `int64[n]`.
        values: fields to add at the top, such as `maxLoad` in milliseconds.
    """
    count = max(workload.accelerators, int(devices.max(initial=0)))
    nodes = [workload.ids[devices == device].tolist() for device in range(count + 1)]
    parts = [{"nodes": ids} for ids in nodes]
    # The CPUs are one device in both objectives: what they run is listed with the first.
    cpus = parts[:1] + [{"nodes": []} for _ in range(workload.cpus - 1)]
    write_json(path, {"cpus": cpus, "fpgas": parts[1:], **(values or {})})


def read_map(path: str | PathLike, workload: Workload) -> Ints:
    """Read an object of node id -> device (0 the CPU, from 1 the accelerators).

    Returns:
        Device of every node, `int64[n]`.

    Raises:
        SegueError: naming the file, the node and the reason.
    """
    where, record = str(path), read_object(path)
    pairs = []
    for key, value in record.items():
        device = whole(value, f"node {key[:20]}", where)
        if len(key) > 20 or not key.removeprefix("-").isdecimal() or device < 0:
            raise SegueError(f"{where}: node {key[:20]}: expected node id -> device >= 0, got {value!r}")
        pairs.append((int(key), device, f"node {key}"))
    return _devices(pairs, workload, where)


def _parts(record: dict[str, Any], field: str, where: str) -> Iterable[tuple[int, str, list[int]]]:
    parts = record.get(field)
    if not isinstance(parts, list):
        raise SegueError(f"{where}: {field}: expected a list of objects with `nodes`")
    for place, part in enumerate(parts):
        label = f"{field}[{place}]"
        nodes = part.get("nodes") if isinstance(part, dict) else None
        if not isinstance(nodes, list):
            raise SegueError(f"{where}: {label}: nodes: expected a list of node ids")
        yield place, label, [whole(node, f"{label}: nodes", where) for node in nodes]


def _devices(pairs: Iterable[tuple[int, int, str]], workload: Workload, where: str) -> Ints:
    devices = np.full(workload.num_nodes, -1, np.int64)
    for node, device, label in pairs:
        position = workload.index.get(node)
        if position is None:
            raise SegueError(f"{where}: {label}: there is no node {node} in {workload.name}")
        if devices[position] >= 0:
            raise SegueError(f"{where}: {label}: node {node} is listed twice")
        devices[position] = device
    for position in np.flatnonzero(devices < 0)[:1]:
        raise SegueError(f"{where}: node {workload.ids[position]} is on no device")
    return devices
