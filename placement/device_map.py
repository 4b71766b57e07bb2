"""Hugging Face's `device_map`: placements as JSON objects from module path to device."""

import re
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import SegueError
from .files import check_text, read_object, write_json
from .graph import Graph
from .placement import colocate
from .topology import Topology

CONTENT = "an object of module path -> device"
Ints = NDArray[np.int64]


def read_device_map(path: str | PathLike, graph: Graph, topology: Topology) -> Ints:
    """The placement that a `device_map` file describes.

    An entry holds for all ops under its module path, `""` for all there are, and the longest path wins. Its device is a
    name in the topology, the position of a device, or `cuda:` and a position. Maps as accelerate writes them list the
    parts of a module that is split but not the module itself: what such a module computes besides calling its parts runs
    where its inputs are (`follow_inputs`), as it does under accelerate's hooks. A colocation group, such as the users of
    a tied weight, follows its first op.

    Returns:
        Device of every op, `int64[n]`.

    Raises:
        SegueError: naming the file and the entry that is malformed, or the module that no entry covers.
    """
    return placement_of(read_object(path, CONTENT), graph, topology, str(path))


def placement_of(record: dict[str, Any], graph: Graph, topology: Topology, where: str) -> Ints:
    """As `read_device_map`, of a record that has been read already; `where` names it in errors."""
    entries = {
        check_text(module, "module path", where): _device(v, module, topology, where) for module, v in record.items()
    }
    if not entries:
        raise SegueError(f'{where}: no entries; expected module path -> device, or {{"": device}} for all modules')
    split = {parent for module in entries for parent in _path(module)[1:]}
    devices = np.full(graph.num_ops, -1, np.int64)
    for op, module in enumerate(graph.modules):
        covering = next((entries[path] for path in _path(module) if path in entries), -1)
        if covering < 0 and module not in split:
            raise SegueError(
                f"{where}: module {module!r} has no entry (op {graph.names[op]}); add it, a module that it is part of, "
                'or "" for all others'
            )
        devices[op] = covering
    return colocate(follow_inputs(devices, graph), graph)


def write_device_map(path: str | PathLike, graph: Graph, topology: Topology, devices: Ints) -> list[str]:
    """Write a placement as a `device_map` of the fewest entries, devices by their position in the topology.

    Reading it gives back the placement, but for the modules that are returned.

    Args:
        path: the JSON file.
        graph: whose module paths are the keys.
        topology: the devices.
        devices: device of every op, `int64[n]`.

    Returns:
        Modules whose own ops are on different devices; a map has one device a module, and gets that of most of their ops.
    """
    own, split = _device_of_modules(graph, devices)
    write_json(path, _fewest_entries(own, topology.num_devices))
    return split


def follow_inputs(devices: Ints, graph: Graph) -> Ints:
    """A device for the ops that have none (-1), `int64[n]`: that of the last of their inputs to be computed.

    An op without such inputs is where the first that reads it is; one that nothing reads either, on device 0.
    """
    devices = devices.copy()
    free = devices < 0
    for source, target in graph.edges[np.lexsort((graph.edges[:, 0], graph.edges[:, 1]))]:
        if free[target] and devices[source] >= 0:
            devices[target] = devices[source]
    free = devices < 0
    for source, target in graph.edges[np.lexsort((graph.edges[:, 1], graph.edges[:, 0]))][::-1]:
        if free[source] and devices[target] >= 0:
            devices[source] = devices[target]
    return np.maximum(devices, 0)


def _path(module: str) -> list[str]:
    """A module, what it is part of, and so on to the root, `""`."""
    path = [module]
    while path[-1]:
        path.append(path[-1].rpartition(".")[0])
    return path


def _device(value: Any, module: str, topology: Topology, where: str) -> int:
    """Position of the device that an entry names."""
    if isinstance(value, str) and value in topology.index:
        return topology.index[value]
    numbered = re.fullmatch(r"cuda:([0-9]{1,9})", value) if isinstance(value, str) else None
    position = int(numbered[1]) if numbered else value
    if type(position) is int and 0 <= position < topology.num_devices:
        return position
    known = f"0..{topology.num_devices - 1}, {', '.join(topology.index)}"
    if value in ("cpu", "disk"):
        raise SegueError(
            f"{where}: {module!r}: offloaded to {value!r}, which is no device of the topology; known: {known}"
        )
    raise SegueError(f"{where}: {module!r}: expected a device, got {_short(value)}; known: {known}")


def _short(value: Any) -> str:
    try:
        shown = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits
        shown = type(value).__name__
    return shown if len(shown) <= 40 else shown[:37] + "..."


def _device_of_modules(graph: Graph, devices: Ints) -> tuple[dict[str, int], list[str]]:
    """The device of most ops of each module, and the modules whose ops differ."""
    members: dict[str, list[int]] = {}
    for module, device in zip(graph.modules, devices.tolist(), strict=True):
        members.setdefault(module, []).append(device)
    own = {module: int(np.argmax(np.bincount(used))) for module, used in members.items()}
    return own, [module for module, used in members.items() if len(set(used)) > 1]


def _fewest_entries(own: dict[str, int], num_devices: int) -> dict[str, int]:
    """The smallest map under which every module has its device.

    Labels are chosen on the tree of modules by dynamic programming (Sankoff, SIAM J. Appl. Math. 28, 1975): an entry is
    needed wherever a module's device is not that of the module around it.
    """
    paths = dict.fromkeys(path for module in own for path in _path(module))
    parents = {path: path.rpartition(".")[0] for path in paths if path}
    outermost_first = sorted(paths, key=lambda path: len(_path(path)))
    entries_below = {path: np.zeros(num_devices) for path in paths}
    for path in reversed(outermost_first):
        if path in own:
            entries_below[path][np.arange(num_devices) != own[path]] = np.inf
        if path:
            below = entries_below[path]
            entries_below[parents[path]] += np.minimum(below, 1 + below.min())
    chosen: dict[str, int] = {}
    entries: dict[str, int] = {}
    for path in outermost_first:
        below = entries_below[path]
        chosen[path] = int(np.argmin(below))
        if path:
            inherited = chosen[parents[path]]
            if below[inherited] <= 1 + below.min():
                chosen[path] = inherited
                continue
        entries[path] = chosen[path]
    return entries
