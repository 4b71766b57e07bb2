"""`Graph`: a model's computation graph with the costs of one microbatch."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import SegueError
from .files import check_fields, check_format, check_text, read_json, text, write_json

FORMAT = "segue.graph/1"
COSTS = (
    "forward_flops",
    "backward_flops",
    "read_bytes",
    "written_bytes",
    "parameter_bytes",
    "buffer_bytes",
    "saved_bytes",
    "output_bytes",
)


@dataclass(frozen=True, eq=False)
class Graph:
    """Ops of one training step in topological order, the edges between them, and their costs.

    All costs are for one microbatch of `batch_size` samples. `n` is the number of ops, `e` of edges.

    Attributes:
        name: what the graph was captured from.
        batch_size: samples in the microbatch that the costs are for.
        names: unique op names, `n`.
        kinds: operator kinds (`conv2d`, `relu`), `n`.
        modules: path of the module that called the op, empty at the root, `n`.
        edges: `int64[e, 2]`, rows `(source, target)` with `source < target`, unique and sorted.
        forward_flops: floating-point operations of the forward pass, `float64[n]`.
        backward_flops: the same for the backward pass; 0 where nothing is differentiated.
        read_bytes: bytes the forward pass reads, parameters included.
        written_bytes: bytes the forward pass writes.
        parameter_bytes: bytes of trained parameters; a parameter that several ops use counts at the first.
        buffer_bytes: bytes of buffers and frozen parameters, likewise.
        saved_bytes: bytes kept from forward to backward.
        output_bytes: bytes of the op's output, which an edge to another device has to carry.
        requires_grad: whether a gradient flows back through the output, `bool[n]`.
        colocation: ops with the same value >= 0 share a device; -1 is free, `int64[n]`.
    """

    name: str
    batch_size: int
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    modules: tuple[str, ...]
    edges: NDArray[np.int64]
    forward_flops: NDArray[np.float64]
    backward_flops: NDArray[np.float64]
    read_bytes: NDArray[np.float64]
    written_bytes: NDArray[np.float64]
    parameter_bytes: NDArray[np.float64]
    buffer_bytes: NDArray[np.float64]
    saved_bytes: NDArray[np.float64]
    output_bytes: NDArray[np.float64]
    requires_grad: NDArray[np.bool_]
    colocation: NDArray[np.int64]

    @property
    def num_ops(self) -> int:
        """Number of ops."""
        return len(self.names)

    @cached_property
    def hash(self) -> str:
        """Identifies structure and names (not costs, which differ between profiles of the same model)."""
        digest = hashlib.sha256("\n".join((*self.names, *self.kinds)).encode())
        digest.update(np.ascontiguousarray(self.edges).tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def index(self) -> dict[str, int]:
        """Op name -> position."""
        return {name: position for position, name in enumerate(self.names)}

    def save(self, path: str | PathLike) -> None:
        """Write the graph as `segue.graph/1` JSON."""
        write_json(path, self.to_record())

    def to_record(self) -> dict[str, Any]:
        """The JSON form: every field, arrays as lists."""
        record: dict[str, Any] = {"format": FORMAT}
        for field in fields(self):
            value = getattr(self, field.name)
            record[field.name] = value.tolist() if isinstance(value, np.ndarray) else value
        return record

    @staticmethod
    def load(path: str | PathLike) -> "Graph":
        """Read a graph file.

        Raises:
            SegueError: naming the file, the field and the reason.
        """
        return Graph.from_record(read_json(path, FORMAT), str(path))

    @staticmethod
    def from_record(record: dict[str, Any], where: str = "graph") -> "Graph":
        """The graph of a JSON record, checked."""
        check_format(record, FORMAT, where)
        known = [field.name for field in fields(Graph)]
        check_fields(record, known, ["format"], where)
        values: dict[str, Any] = {"name": text(record["name"], "name", where)}
        values["batch_size"] = _integer(record["batch_size"], "batch_size", where)
        for field in ("names", "kinds", "modules"):
            values[field] = _strings(record[field], field, where)
        for field in COSTS:
            values[field] = _array(record[field], np.float64, field, where)
        values["edges"] = _array(record["edges"], np.int64, "edges", where).reshape(-1, 2)
        values["requires_grad"] = _array(record["requires_grad"], np.bool_, "requires_grad", where)
        values["colocation"] = _array(record["colocation"], np.int64, "colocation", where)
        graph = Graph(**values)
        check_graph(graph, where)
        return graph

    def scaled(self, samples: float) -> "Graph":
        """The same graph for microbatches of `samples`: all but parameters and buffers grow in proportion."""
        ratio = samples / self.batch_size
        constant = ("parameter_bytes", "buffer_bytes")
        costs = {field: getattr(self, field) * ratio for field in COSTS if field not in constant}
        return replace(self, batch_size=max(1, round(samples)), **costs)


def make_graph(
    name: str,
    edges: Sequence[tuple[int, int]] | NDArray[np.int64],
    num_ops: int | None = None,
    *,
    batch_size: int = 1,
    names: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
    modules: Sequence[str] | None = None,
    requires_grad: NDArray[np.bool_] | None = None,
    colocation: NDArray[np.int64] | None = None,
    **costs: Any,
) -> Graph:
    """Build and check a `Graph`; costs that are not given are zero, scalars are the same for all ops.

    Args:
        name: the graph's name.
        edges: pairs `(source, target)`, `source < target`; duplicates are merged.
        num_ops: number of ops; by default one more than the largest op in `edges`.
        batch_size: samples the costs are for.
        names: op names; by default `op0`, `op1`, ….
        kinds: op kinds; by default `op`.
        modules: module paths; by default empty.
        requires_grad: by default true everywhere.
        colocation: by default -1 everywhere.
        **costs: any of `segue.placement.graph.COSTS`.

    Raises:
        SegueError: if the result is not a valid graph.
    """
    pairs = np.asarray(edges, dtype=np.int64).reshape(-1, 2)
    pairs = np.unique(pairs, axis=0)
    count = num_ops if num_ops is not None else int(pairs.max(initial=0)) + 1
    unknown = set(costs) - set(COSTS)
    if unknown:
        raise SegueError(f"graph {name}: unknown costs {sorted(unknown)}; known: {', '.join(COSTS)}")
    columns = {
        field: np.ascontiguousarray(np.broadcast_to(np.asarray(costs.get(field, 0.0), float), (count,)))
        for field in COSTS
    }
    graph = Graph(
        name=name,
        batch_size=batch_size,
        names=tuple(names) if names is not None else tuple(f"op{i}" for i in range(count)),
        kinds=tuple(kinds) if kinds is not None else ("op",) * count,
        modules=tuple(modules) if modules is not None else ("",) * count,
        edges=pairs,
        requires_grad=np.ones(count, bool) if requires_grad is None else np.asarray(requires_grad, bool),
        colocation=np.full(count, -1, np.int64) if colocation is None else np.asarray(colocation, np.int64),
        **columns,
    )
    check_graph(graph)
    return graph


def check_graph(graph: Graph, where: str | None = None) -> None:
    """Check that a graph is usable.

    Raises:
        SegueError: naming the field, the op and the reason: arrays of unequal length, names that repeat, edges that do
            not run forward in the given order, costs that are negative or not finite.
    """
    where = where or f"graph {graph.name}"
    count = graph.num_ops
    if count == 0:
        raise SegueError(f"{where}: names: a graph needs at least one op")
    if graph.batch_size < 1:
        raise SegueError(f"{where}: batch_size must be >= 1, got {graph.batch_size}")
    for field in ("kinds", "modules", *COSTS, "requires_grad", "colocation"):
        length = len(getattr(graph, field))
        if length != count:
            raise SegueError(f"{where}: {field}: expected {count} entries, one an op, got {length}")
    if len(set(graph.names)) != count:
        repeated = next(name for name in graph.names if graph.names.count(name) > 1)
        raise SegueError(f"{where}: names: {repeated!r} appears twice")
    for field in COSTS:
        values = getattr(graph, field)
        wrong = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
        if wrong.size:
            op = wrong[0]
            raise SegueError(f"{where}: {field}[{graph.names[op]}] must be finite and >= 0, got {values[op]}")
    for op in np.flatnonzero(graph.colocation < -1)[:1]:
        raise SegueError(
            f"{where}: colocation[{graph.names[op]}] must be -1 (free) or a label >= 0, got {graph.colocation[op]}"
        )
    _check_edges(graph, where)


def _check_edges(graph: Graph, where: str) -> None:
    edges, count = graph.edges, graph.num_ops
    if edges.ndim != 2 or edges.shape[1] != 2:
        raise SegueError(f"{where}: edges: expected pairs (source, target)")
    for source, target in edges[(edges < 0).any(axis=1) | (edges >= count).any(axis=1)][:1]:
        raise SegueError(f"{where}: edges: ({source}, {target}) names an op outside 0..{count - 1}")
    for source, target in edges[edges[:, 0] >= edges[:, 1]][:1]:
        raise SegueError(f"{where}: edges: ({source}, {target}) does not run forward; list ops in topological order")
    if len(np.unique(edges, axis=0)) != len(edges):
        raise SegueError(f"{where}: edges: a pair appears twice")


def _strings(value: Any, field: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise SegueError(f"{where}: {field}: expected a list of strings")
    return tuple(check_text(item, field, where) for item in value)


def _integer(value: Any, field: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise SegueError(f"{where}: {field}: expected a whole number, got {value!r}")
    return value


def _array(value: Any, dtype: Any, field: str, where: str) -> NDArray[Any]:
    try:
        array = np.asarray(value)
        if array.size == 0:
            return np.zeros(0, dtype)
        if array.dtype.kind not in {"f": "iuf", "i": "i", "b": "b"}[np.dtype(dtype).kind]:
            raise ValueError(f"got {array.dtype}")
        if field == "edges" and (array.ndim != 2 or array.shape[1] != 2):
            raise ValueError("expected pairs (source, target)")
        if field != "edges" and array.ndim != 1:
            raise ValueError("expected a flat list")
        return array.astype(dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise SegueError(f"{where}: {field}: expected a list of {np.dtype(dtype).name}: {error}") from error
