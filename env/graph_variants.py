"""Variants of given graphs to train on: other costs, sections of them, and two joined to one."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..placement.graph import COSTS, Graph

Rng = np.random.Generator

FEWEST_OPS = 12
"""Ops of a section at least, if its graph has them."""


def variant(rng: Rng, graph: Graph) -> Graph:
    """A graph with other costs: its kinds of ops and single ops are dearer or cheaper, its values larger or smaller."""
    kinds = np.unique(graph.kinds, return_inverse=True)[1]
    of_kind = rng.lognormal(0.0, 0.4, kinds.max() + 1)[kinds]
    compute = of_kind * rng.lognormal(0.0, rng.uniform(0.0, 0.4), graph.num_ops)
    size = 10 ** rng.uniform(-0.7, 0.7) * rng.lognormal(0.0, 0.1, graph.num_ops)
    state = 10 ** rng.uniform(-0.7, 0.5)
    return _scaled(graph, compute, size, state)


def section(rng: Rng, graph: Graph) -> Graph:
    """A third to all of a graph: consecutive ops, and the edges between them."""
    count = graph.num_ops
    size = max(min(FEWEST_OPS, count), int(count * rng.uniform(0.33, 1.0)))
    first = int(rng.integers(count - size + 1))
    part = _section(graph, first, first + size)
    return part if part.forward_flops.sum() > 0.05 * graph.forward_flops.sum() else graph


def joined(rng: Rng, one: Graph, other: Graph) -> Graph:
    """Two graphs as one: the second reads what the first makes, or runs beside it from the first's first op on.

    The second's costs are scaled: its compute to a third to three times the first's, its values and parameters to the
    first's, on average.
    """
    count, beside = one.num_ops, rng.random() < 0.5
    compute = np.exp(rng.uniform(-1, 1)) * _ratio(one.forward_flops.sum(), other.forward_flops.sum())
    size = _ratio(one.output_bytes.mean(), other.output_bytes.mean())
    state = _ratio(one.parameter_bytes.mean(), other.parameter_bytes.mean())
    other = _scaled(other, np.full(other.num_ops, compute), np.full(other.num_ops, size), state)
    fed = np.setdiff1d(np.arange(other.num_ops), other.edges[:, 1])
    bridge = [(0 if beside else count - 1, count + int(op)) for op in fed]
    if beside:
        bridge.append((count - 1, count + other.num_ops - 1))
    edges = np.unique(np.concatenate([one.edges, other.edges + count, np.array(bridge)]), axis=0)
    labels = np.where(other.colocation >= 0, other.colocation + one.colocation.max(initial=-1) + 1, -1)
    return Graph(
        name=f"{one.name}+{other.name}",
        batch_size=one.batch_size,
        names=tuple(f"{part}.{name}" for part, graph in enumerate((one, other)) for name in graph.names),
        kinds=one.kinds + other.kinds,
        modules=tuple(f"{part}.{name}" for part, graph in enumerate((one, other)) for name in graph.modules),
        edges=edges,
        requires_grad=np.concatenate([one.requires_grad, other.requires_grad]),
        colocation=np.concatenate([one.colocation, labels]),
        **{field: np.concatenate([getattr(one, field), getattr(other, field)]) for field in COSTS},
    )


def _section(graph: Graph, first: int, end: int) -> Graph:
    kept = slice(first, end)
    inside = ((graph.edges >= first) & (graph.edges < end)).all(axis=1)
    return replace(
        graph,
        names=graph.names[kept],
        kinds=graph.kinds[kept],
        modules=graph.modules[kept],
        edges=graph.edges[inside] - first,
        requires_grad=graph.requires_grad[kept],
        colocation=graph.colocation[kept],
        **{field: getattr(graph, field)[kept] for field in COSTS},
    )


def _scaled(graph: Graph, compute: NDArray[np.float64], size: NDArray[np.float64], state: float) -> Graph:
    """A graph with compute, sizes of values (`float64[n]` each) and parameters multiplied."""
    factors = dict.fromkeys(COSTS, 1.0) | {
        "forward_flops": compute,
        "backward_flops": compute,
        "read_bytes": compute,
        "written_bytes": compute,
        "output_bytes": size,
        "saved_bytes": size,
        "parameter_bytes": state,
    }
    return replace(graph, **{field: getattr(graph, field) * factor for field, factor in factors.items()})


def _ratio(one: float, other: float) -> float:
    return float(one / other) if one > 0 and other > 0 else 1.0
