"""`Problem`: what stays the same through an episode, as arrays over groups and move units."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from ..placement.clock import Clock
from ..placement.coarsen import Groups, coarsen
from ..placement.costs import Costs, make_costs
from ..placement.errors import SegueError
from ..placement.graph import Graph
from .bounds import Pipeline, make_pipeline
from .config import EnvConfig

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Problem:
    """A graph on a topology, seen as `n` groups, `e` edges between them, `u` move units and `d` devices.

    Attributes:
        clock: what times a placement.
        groups: the groups and units.
        sizes: ops in each group, `float64[n]`.
        compute_s: seconds of each group in a whole step on each device, `float64[n, d]`.
        state_bytes: parameters, gradients, optimizer state and buffers of each group, `float64[n]`.
        saved_bytes: bytes that each group keeps from forward to backward, for one microbatch.
        edges: `int64[e, 2]`, rows `(source, target)`.
        edge_bytes: bytes over each edge in a whole step, gradients included, `float64[e]`.
        edge_messages: messages over each edge in a whole step.
        pipeline: what the bounds of a step are computed from.
        latency_s: mean of both directions between two devices, `float64[d, d]`.
        seconds_per_byte: likewise.
        member: whether a group is in a unit, `float64[u, n]`.
        group_features: features of the groups that no placement changes, `float32[n, GROUP_CONSTANTS]`.
    """

    clock: Clock
    groups: Groups
    sizes: Floats
    compute_s: Floats
    state_bytes: Floats
    saved_bytes: Floats
    edges: Ints
    edge_bytes: Floats
    edge_messages: Floats
    pipeline: Pipeline
    latency_s: Floats
    seconds_per_byte: Floats
    member: Floats
    group_features: NDArray[np.float32]

    @property
    def num_groups(self) -> int:
        """Number of groups."""
        return len(self.sizes)

    @property
    def num_units(self) -> int:
        """Number of units that no placement changes."""
        return len(self.member)

    @property
    def num_devices(self) -> int:
        """Number of devices."""
        return self.compute_s.shape[1]


GROUP_CONSTANTS = 9


def make_problem(clock: Clock, config: EnvConfig, costs: Costs | None = None) -> Problem:
    """Coarsen a clock's graph and sum its costs over groups and units.

    Args:
        clock: any clock.
        config: the sizes to keep to.
        costs: what ops cost; by default the clock's own (`SimulatedClock.costs`), else those of the roofline.

    Raises:
        SegueError: if the topology has more than `config.max_devices` devices, or no op takes any time.
    """
    graph, topology = clock.graph, clock.topology
    if topology.num_devices > config.max_devices:
        raise SegueError(
            f"topology {topology.name}: {topology.num_devices} devices, but EnvConfig.max_devices is {config.max_devices}"
        )
    priced: Costs = costs or getattr(clock, "costs", None) or make_costs(graph, topology)
    groups = coarsen(graph, config.max_groups)
    count, of = groups.num_groups, groups.group_of
    ops = csr_array((np.ones(len(of)), (of, np.arange(len(of)))), shape=(count, len(of)))
    seconds = clock.microbatches * (priced.forward_s + priced.backward_s) + priced.update_s
    compute = np.ascontiguousarray(priced.on_devices(ops @ seconds))
    if not compute.any():
        raise SegueError(f"graph {graph.name}: every op takes 0 seconds; nothing to place by")
    edges, edge_bytes, edge_messages = _edges(graph, of, clock.microbatches, config.max_edges)
    member = np.zeros((len(groups.units), count))
    for row, unit in enumerate(groups.units):
        member[row, unit] = 1.0
    latency = (topology.latency_s + topology.latency_s.T) / 2
    pace = (topology.seconds_per_byte + topology.seconds_per_byte.T) / 2
    state = _sums(of, priced.state_bytes, count)
    return Problem(
        clock=clock,
        groups=groups,
        sizes=np.bincount(of).astype(float),
        compute_s=compute,
        state_bytes=state,
        saved_bytes=_sums(of, graph.saved_bytes, count),
        edges=edges,
        edge_bytes=edge_bytes,
        edge_messages=edge_messages,
        pipeline=make_pipeline(
            compute,
            edges,
            edge_bytes,
            edge_messages,
            latency,
            pace,
            clock.microbatches,
            getattr(clock, "steady", False),
        ),
        latency_s=latency,
        seconds_per_byte=pace,
        member=member,
        group_features=_group_features(graph, of, compute, state, edges),
    )


def _edges(graph: Graph, of: Ints, microbatches: int, most: int) -> tuple[Ints, Floats, Floats]:
    """Edges between groups with bytes and messages of a step; an op's output goes to a group once."""
    count = int(of.max()) + 1
    source, target = graph.edges[:, 0], of[graph.edges[:, 1]]
    code = np.unique((source * count + target)[of[source] != target])
    source, target = code // count, code % count
    times = microbatches * (1.0 + graph.requires_grad[source])
    pair, inverse = np.unique(of[source] * count + target, return_inverse=True)
    volume = _sums(inverse, graph.output_bytes[source] * times, len(pair))
    messages = np.zeros(len(pair))
    np.maximum.at(messages, inverse, times)
    kept = np.sort(np.argsort(-volume, kind="stable")[:most])
    edges = np.stack([pair // count, pair % count], axis=1)[kept]
    return edges, volume[kept], messages[kept]


def _group_features(graph: Graph, of: Ints, compute: Floats, state: Floats, edges: Ints) -> NDArray[np.float32]:
    count = len(state)
    fastest = compute.min(axis=1)
    saved, out = (_sums(of, column, count) for column in (graph.saved_bytes, graph.output_bytes))
    level = np.zeros(count)
    for source, target in edges[np.argsort(edges[:, 1], kind="stable")]:
        level[target] = max(level[target], level[source] + 1)
    columns = [
        np.log10(_share(fastest) * count + 1e-3),
        _share(fastest),
        np.log10(_share(state) * count + 1e-3),
        np.log10(_share(saved) * count + 1e-3),
        np.log10(_share(out) * count + 1e-3),
        np.arange(count) / count,
        level / max(1.0, level.max()),
        np.bincount(edges[:, 1], minlength=count) / 4,
        np.bincount(edges[:, 0], minlength=count) / 4,
    ]
    return np.stack(columns, axis=1).clip(-5, 5).astype(np.float32)


def _sums(of: Ints, values: Floats, count: int) -> Floats:
    """Sums of `values` by `of`, `float64[count]`."""
    return np.bincount(of, values, count).astype(np.float64)


def _share(values: Floats) -> Floats:
    return values / max(values.sum(), 1e-30)
