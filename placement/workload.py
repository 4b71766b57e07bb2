"""`Workload`: one graph of the public operator-placement benchmark, with its accelerators.

The benchmark is Microsoft's, of Tarnawski et al., "Efficient Algorithms for Device Placement of DNN Graph Operators"
(NeurIPS 2020). A *device* here is a number: 0 stands for the CPUs, 1 to `accelerators` for the accelerators.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import SegueError
from .files import number, read_object

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

CPU = 0
"""The device number of the CPUs; accelerators count from 1."""

LARGEST_ID = 2**62
COST_TOLERANCE = 1e-6


class Flow(NamedTuple):
    """The compiled form of a workload: costs, and edges in both directions.

    `consumers[out_start[v]:out_start[v + 1]]` are node `v`'s consumers and `producers[in_start[v]:in_start[v + 1]]` its
    producers, each once.
    """

    cpu_ms: Floats
    accelerator_ms: Floats
    size_bytes: Floats
    cost_ms: Floats
    out_start: Ints
    consumers: Ints
    in_start: Ints
    producers: Ints


@dataclass(frozen=True, eq=False)
class Workload:
    """Nodes in the file's order, the edges between them, and the machine; `n` nodes, `e` edges.

    Attributes:
        name: what the workload was read from.
        accelerators: how many accelerators may be used.
        cpus: how many CPUs there are; they are one device, and run any number of nodes side by side.
        accelerator_bytes: memory of each accelerator.
        ids: the file's node ids, unique, `int64[n]`.
        supported: whether an accelerator can run the node, `bool[n]`.
        cpu_ms: milliseconds on a CPU, `float64[n]`.
        accelerator_ms: milliseconds on an accelerator, `float64[n]`.
        is_backward: whether the node belongs to the backward pass, `bool[n]`.
        color: nodes with the same value >= 0 share a device; -1 is free, `int64[n]`.
        size_bytes: bytes on an accelerator, `float64[n]`.
        cost_ms: milliseconds to move the node's output between an accelerator and the host, `float64[n]`.
        edges: rows `(source, target)` of positions, unique and sorted, `int64[e, 2]`.
    """

    name: str
    accelerators: int
    cpus: int
    accelerator_bytes: float
    ids: Ints
    supported: Bools
    cpu_ms: Floats
    accelerator_ms: Floats
    is_backward: Bools
    color: Ints
    size_bytes: Floats
    cost_ms: Floats
    edges: Ints

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return len(self.ids)

    @cached_property
    def index(self) -> dict[int, int]:
        """Node id -> position."""
        return {int(node): position for position, node in enumerate(self.ids)}

    @cached_property
    def flow(self) -> Flow:
        """The compiled form."""
        bounds = np.arange(self.num_nodes + 1)
        by_target = self.edges[np.lexsort((self.edges[:, 0], self.edges[:, 1]))]
        return Flow(
            cpu_ms=self.cpu_ms,
            accelerator_ms=self.accelerator_ms,
            size_bytes=self.size_bytes,
            cost_ms=self.cost_ms,
            out_start=np.searchsorted(self.edges[:, 0], bounds).astype(np.int64),
            consumers=np.ascontiguousarray(self.edges[:, 1]),
            in_start=np.searchsorted(by_target[:, 1], bounds).astype(np.int64),
            producers=np.ascontiguousarray(by_target[:, 0]),
        )


def read_workload(path: str | PathLike) -> Workload:
    """Read a workload in the benchmark's own JSON.

    Raises:
        SegueError: naming the file, the node or edge, the field and the reason.
    """
    where = str(path)
    record = read_object(path)
    nodes = [_object(node, f"nodes[{i}]", where) for i, node in enumerate(_list(record, "nodes", where))]
    ids = [whole(_field(node, "id", f"nodes[{i}]", where), f"nodes[{i}]: id", where) for i, node in enumerate(nodes)]
    named = [f"node {node_id}" for node_id in ids]
    supported = _flags(nodes, named, "supportedOnFpga", where)
    edges, cost = _read_edges(record, ids, where)
    workload = Workload(
        name=Path(path).stem,
        accelerators=whole(_field(record, "maxFPGAs", "", where), "maxFPGAs", where),
        cpus=whole(_field(record, "maxCPUs", "", where), "maxCPUs", where),
        accelerator_bytes=number(_field(record, "maxSizePerFPGA", "", where), "maxSizePerFPGA", where, least=0),
        ids=np.array(ids, np.int64),
        supported=np.array(supported, bool),
        cpu_ms=_numbers(nodes, named, "cpuLatency", where),
        # What no accelerator can run needs no time on one.
        accelerator_ms=_numbers(nodes, named, "fpgaLatency", where, [None if s else 0.0 for s in supported]),
        is_backward=np.array(_flags(nodes, named, "isBackwardNode", where, default=False), bool),
        color=_colors(nodes, named, where),
        size_bytes=_numbers(nodes, named, "size", where),
        cost_ms=cost,
        edges=edges,
    )
    check_workload(workload, where)
    return workload


def check_workload(workload: Workload, where: str | None = None) -> None:
    """Check that a workload is usable.

    Raises:
        SegueError: naming the field, the node and the reason: no nodes, ids that repeat, arrays of unequal length, costs
            that are negative or not finite, edges outside the graph, a cycle, a class that no device can run.
    """
    where = where or f"workload {workload.name}"
    count = workload.num_nodes
    if count == 0:
        raise SegueError(f"{where}: nodes: a workload needs at least one node")
    if len(workload.index) != count:
        ids, times = np.unique(workload.ids, return_counts=True)
        raise SegueError(f"{where}: nodes: id {ids[times > 1][0]} appears twice")
    if workload.accelerators < 0 or workload.cpus < 0:
        field, value = ("maxFPGAs", workload.accelerators) if workload.accelerators < 0 else ("maxCPUs", workload.cpus)
        raise SegueError(f"{where}: {field} must be >= 0, got {value}")
    if not (np.isfinite(workload.accelerator_bytes) and workload.accelerator_bytes >= 0):
        raise SegueError(f"{where}: maxSizePerFPGA must be finite and >= 0, got {workload.accelerator_bytes}")
    for field in ("supported", "is_backward", "color", "cpu_ms", "accelerator_ms", "size_bytes", "cost_ms"):
        values = getattr(workload, field)
        if values.shape != (count,):
            raise SegueError(f"{where}: {field}: expected {count} entries, one a node, got {len(values)}")
        for node in np.flatnonzero(~(np.isfinite(values) & (values >= (-1 if field == "color" else 0))))[:1]:
            raise SegueError(f"{where}: node {workload.ids[node]}: {field} is out of range, got {values[node]}")
    _check_edges(workload, where)
    if workload.cpus == 0 and (workload.accelerators == 0 or not workload.supported.all()):
        raise SegueError(f"{where}: maxCPUs is 0, but some nodes can only run on a CPU")


def topological_order(workload: Workload) -> Ints:
    """Positions of the nodes, producers first; nodes on a cycle (and what follows them) are left out."""
    flow = workload.flow
    missing = np.diff(flow.in_start)
    ready = deque(np.flatnonzero(missing == 0).tolist())
    order = []
    while ready:
        node = ready.popleft()
        order.append(node)
        for consumer in flow.consumers[flow.out_start[node] : flow.out_start[node + 1]].tolist():
            missing[consumer] -= 1
            if missing[consumer] == 0:
                ready.append(consumer)
    return np.array(order, np.int64)


def whole(value: Any, field: str, where: str) -> int:
    """Return `value` as a whole number that fits 64 bits, or raise `SegueError` naming the field."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > LARGEST_ID:
        raise SegueError(f"{where}: {field} must be a whole number, got {_short(value)}")
    return value


def _check_edges(workload: Workload, where: str) -> None:
    edges, count, ids = workload.edges, workload.num_nodes, workload.ids
    if edges.ndim != 2 or edges.shape[1] != 2:
        raise SegueError(f"{where}: edges: expected pairs (source, target)")
    if (edges < 0).any() or (edges >= count).any():
        raise SegueError(f"{where}: edges: a pair names a node outside 0..{count - 1}")
    if len(np.unique(edges, axis=0)) != len(edges) or (np.diff(edges[:, 0]) < 0).any():
        raise SegueError(f"{where}: edges: expected unique pairs sorted by source")
    order = topological_order(workload)
    if len(order) < count:
        stuck = np.setdiff1d(np.arange(count), order)
        raise SegueError(f"{where}: edges: a cycle leads to node {ids[stuck[0]]}")


def _read_edges(record: dict[str, Any], ids: Sequence[int], where: str) -> tuple[Ints, Floats]:
    """Unique edges as positions, and the cost of each node's output."""
    index: dict[int, int] = {}
    for position, node_id in enumerate(ids):
        if index.setdefault(node_id, position) != position:
            raise SegueError(f"{where}: nodes[{position}]: id {node_id} appears twice")
    cost: dict[int, float] = {}
    pairs = set()
    for number_of, edge in enumerate(_list(record, "edges", where)):
        label = f"edges[{number_of}]"
        edge = _object(edge, label, where)
        ends = []
        for field in ("sourceId", "destId"):
            node_id = whole(_field(edge, field, label, where), f"{label}: {field}", where)
            if node_id not in index:
                raise SegueError(f"{where}: {label}: {field}: there is no node {node_id}")
            ends.append(index[node_id])
        source, target = ends
        if source == target:
            raise SegueError(f"{where}: {label}: node {ids[source]} has an edge to itself")
        value = number(_field(edge, "cost", label, where), f"{label}: cost", where, least=0)
        before = cost.setdefault(source, value)
        if abs(value - before) > COST_TOLERANCE * max(value, before):
            raise SegueError(
                f"{where}: {label}: cost: all edges out of node {ids[source]} cost the same, got {value:g} and {before:g}"
            )
        pairs.add((source, target))
    edges = np.array(sorted(pairs), np.int64).reshape(-1, 2)
    return edges, np.array([cost.get(node, 0.0) for node in range(len(ids))], float)


def _colors(nodes: Sequence[dict[str, Any]], named: Sequence[str], where: str) -> Ints:
    """Colour classes numbered from 0 in the order in which they first appear; -1 where a node has none."""
    classes: dict[int, int] = {}
    colors = []
    for node, name in zip(nodes, named, strict=True):
        value = node.get("colorClass")
        if value is None:
            colors.append(-1)
        else:
            colors.append(classes.setdefault(whole(value, f"{name}: colorClass", where), len(classes)))
    return np.array(colors, np.int64)


def _flags(
    nodes: Sequence[dict[str, Any]], named: Sequence[str], field: str, where: str, default: bool | None = None
) -> list[bool]:
    values = []
    for node, name in zip(nodes, named, strict=True):
        value = node.get(field, default) if default is not None else _field(node, field, name, where)
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise SegueError(f"{where}: {name}: {field} must be 0 or 1, got {_short(value)}")
        values.append(bool(value))
    return values


def _numbers(
    nodes: Sequence[dict[str, Any]],
    named: Sequence[str],
    field: str,
    where: str,
    defaults: Sequence[float | None] | None = None,
) -> Floats:
    values = []
    for node, name, default in zip(nodes, named, defaults or [None] * len(nodes), strict=True):
        value = default if default is not None and node.get(field) is None else _field(node, field, name, where)
        values.append(number(value, f"{name}: {field}", where, least=0))
    return np.array(values, float)


def _field(record: dict[str, Any], field: str, label: str, where: str) -> Any:
    if field not in record:
        raise SegueError(f"{where}: {label + ': ' if label else ''}{field}: missing")
    return record[field]


def _list(record: dict[str, Any], field: str, where: str) -> list[Any]:
    value = _field(record, field, "", where)
    if not isinstance(value, list):
        raise SegueError(f"{where}: {field}: expected a list, got {type(value).__name__}")
    return value


def _object(value: Any, label: str, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SegueError(f"{where}: {label}: expected an object, got {type(value).__name__}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
