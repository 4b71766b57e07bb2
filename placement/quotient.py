"""`make_quotient`: a large graph's problem over groups of its ops, for searches that cannot afford every op.

What is found there is a placement of the groups; `expand` gives that of the ops, for the real clock to price.
"""

from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from .clock import SimulatedClock
from .coarsen import coarsen
from .costs import Costs
from .graph import COSTS, Graph, make_graph
from .move_cost import MoveCost

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Quotient:
    """The problem of a clock over groups of ops.

    Attributes:
        clock: prices placements of the groups, on the same devices, links and microbatches. Seconds and bytes of a group are
            its ops'; it sends what any other group reads to every device that reads some of it, and starts when all that any
            of its ops reads has arrived. Where groups are single ops it says what the real clock says.
        group_of: group of every op, `int64[n]`.
    """

    clock: SimulatedClock
    group_of: Ints

    def expand(self, devices: Ints) -> Ints:
        """The device of every op, `int64[n]`, from one for every group."""
        return devices[self.group_of]

    def restrict(self, devices: Ints) -> Ints:
        """The device that most ops of each group are on, `int64[groups]`, from one for every op."""
        groups, count = self.clock.graph.num_ops, self.clock.topology.num_devices
        ops = np.bincount(self.group_of * count + devices, minlength=groups * count)
        return ops.reshape(groups, count).argmax(axis=1)

    def move_cost(self, cost: MoveCost) -> MoveCost:
        """What a move of groups costs where one of ops costs `cost`."""
        seconds = np.bincount(self.group_of, cost.seconds, self.clock.graph.num_ops).astype(np.float64)
        return MoveCost(self.restrict(cost.origin), seconds, cost.pause_s)


def make_quotient(clock: SimulatedClock, max_groups: int) -> Quotient:
    """Coarsen a clock's graph and sum its costs over the groups.

    Where colocation forces a cycle between groups (a weight tied between the first and the last layer), the ops of its groups
    stay single, and the quotient's own colocation keeps them together.

    Args:
        clock: whose step time is the objective.
        max_groups: most groups wanted, single ops of such cycles not counted.

    Raises:
        SegueError: if `max_groups` < 1.
    """
    graph, costs = clock.graph, clock.costs
    group_of = _in_order(graph, _without_cycles(graph, coarsen(graph, max_groups).group_of))
    count = int(group_of.max()) + 1
    ops = np.arange(graph.num_ops)
    sums = csr_array((np.ones(len(ops)), (group_of, ops)), shape=(count, len(ops)))
    working = np.zeros(count)
    np.maximum.at(working, group_of, costs.working_bytes)
    priced = Costs(
        forward_s=sums @ costs.forward_s,
        backward_s=sums @ costs.backward_s,
        update_s=sums @ costs.update_s,
        device_class=costs.device_class,
        state_bytes=sums @ costs.state_bytes,
        working_bytes=working,
        overhead_s=costs.overhead_s,
    )
    quotient = _graph(graph, group_of, sums)
    coarse = SimulatedClock(quotient, clock.topology, priced, clock.sizes, clock.run_ahead, clock.clipping)
    return Quotient(coarse, group_of)


def _graph(graph: Graph, group_of: Ints, sums: csr_array) -> Graph:
    """The graph of the groups; each is called as its first op is."""
    count = int(group_of.max()) + 1
    first = np.unique(group_of, return_index=True)[1]
    ends = group_of[graph.edges]
    between = ends[:, 0] != ends[:, 1]
    read = np.unique(graph.edges[between, 0])
    columns = {field: sums @ getattr(graph, field) for field in COSTS}
    columns["output_bytes"] = np.bincount(group_of[read], graph.output_bytes[read], count).astype(np.float64)
    return make_graph(
        graph.name,
        ends[between],
        count,
        batch_size=graph.batch_size,
        names=[graph.names[op] for op in first],
        kinds=[graph.kinds[op] for op in first],
        modules=[graph.modules[op] for op in first],
        requires_grad=np.bincount(group_of, graph.requires_grad, count) > 0,
        colocation=_colocation(graph, group_of),
        **columns,
    )


def _colocation(graph: Graph, group_of: Ints) -> Ints:
    """Label of every group whose colocation class is spread over several groups, -1 for the others."""
    colocated = np.flatnonzero(graph.colocation >= 0)
    pairs = np.unique(np.stack([graph.colocation[colocated], group_of[colocated]], axis=1), axis=0)
    _, place, groups = np.unique(pairs[:, 0], return_inverse=True, return_counts=True)
    label = np.full(int(group_of.max()) + 1, -1)
    spread = groups[place] > 1
    label[pairs[spread, 1]] = pairs[spread, 0]
    return label


def _without_cycles(graph: Graph, group_of: Ints) -> Ints:
    """The groups, those of a cycle split into single ops: first those of one colocation class alone, then, if need be, all.

    Splitting a group whole makes no new cycles.
    """
    for alone in (True, False):
        count = int(group_of.max()) + 1
        ends = group_of[graph.edges]
        matrix = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count)).tocsr()
        component = connected_components(matrix, connection="strong")[1]
        cyclic = (np.bincount(component) > 1)[component]
        if not cyclic.any():
            break
        if alone:
            lowest, highest = np.full(count, np.iinfo(np.int64).max), np.full(count, -1)
            np.minimum.at(lowest, group_of, graph.colocation)
            np.maximum.at(highest, group_of, graph.colocation)
            cyclic &= (lowest == highest) & (lowest >= 0)
        split = cyclic[group_of]
        group_of = np.where(split, count + np.arange(graph.num_ops), group_of)
        group_of = np.unique(group_of, return_inverse=True)[1]
    return group_of


def _in_order(graph: Graph, group_of: Ints) -> Ints:
    """The same groups numbered in topological order, of those that may come next the one with the earliest op first."""
    count = int(group_of.max()) + 1
    first = np.unique(group_of, return_index=True)[1].tolist()
    pairs = np.unique(group_of[graph.edges], axis=0)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    missing = np.bincount(pairs[:, 1], minlength=count).tolist()
    start = np.searchsorted(pairs[:, 0], np.arange(count + 1)).tolist()
    ready = sorted((first[group], group) for group in range(count) if not missing[group])
    number = np.empty(count, np.int64)
    for place in range(count):
        group = heappop(ready)[1]
        number[group] = place
        for target in pairs[start[group] : start[group + 1], 1].tolist():
            missing[target] -= 1
            if not missing[target]:
                heappush(ready, (first[target], target))
    return number[group_of]
