"""Units of a `Workload`: the colour classes, which searches move as one, and their cuts into runs."""

from typing import NamedTuple

import numpy as np
from numba import njit
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..workload import CPU, Bools, Floats, Flow, Ints, Workload

# Cutting looks at every run of the order: longer orders are cut at every few units only.
MOST_CUTS = 1500


class Units(NamedTuple):
    """Nodes that share a device, `u` units numbered in an order of the forward pass.

    Attributes:
        of_node: unit of every node, `int64[n]`.
        start: nodes of unit `i` are `members[start[i]:start[i + 1]]`.
        members: see `start`.
        near_start: units with an edge to or from unit `i` are `near[near_start[i]:near_start[i + 1]]`.
        near: see `near_start`.
        free: whether an accelerator can run the whole unit, `bool[u]`.
    """

    of_node: Ints
    start: Ints
    members: Ints
    near_start: Ints
    near: Ints
    free: Bools


def make_units(workload: Workload, rng: np.random.Generator, *, contract: bool = False) -> Units:
    """The colour classes of a workload in a random topological order of its forward pass.

    Args:
        workload: whose nodes are grouped.
        rng: decides between units that could both come next.
        contract: also make one unit of classes that depend on each other in a circle, which no accelerator could run apart.
    """
    count = workload.num_nodes
    label = np.where(workload.color >= 0, workload.color, workload.color.max() + 1 + np.arange(count))
    _, label = np.unique(label, return_inverse=True)
    circle = _circles(workload, label, np.ones(len(workload.edges), bool))
    if contract:
        label, circle = circle[label], np.arange(circle.max() + 1)
    return _numbered(workload, label, _order(workload, label, rng))


def _circles(workload: Workload, label: Ints, used: Bools) -> Ints:
    """For every label the strongly connected component of the labels' graph over the edges in use."""
    count = int(label.max()) + 1
    pairs = label[workload.edges[used]]
    matrix = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(matrix.tocsr(), connection="strong")[1].astype(np.int64)


def _order(workload: Workload, label: Ints, rng: np.random.Generator) -> Ints:
    """Labels in a random depth-first topological order of the forward edges; backward nodes on their own by neighbours."""
    count = int(label.max()) + 1
    backward = workload.is_backward[workload.edges[:, 0]] | workload.is_backward[workload.edges[:, 1]]
    circle = _circles(workload, label, ~backward)
    pairs = np.unique(circle[label[workload.edges[~backward]]], axis=0)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    missing = np.bincount(pairs[:, 1], minlength=count)
    starts = np.searchsorted(pairs[:, 0], np.arange(count + 1))
    forward = np.zeros(count, bool)
    forward[circle[label[~workload.is_backward]]] = True
    ready = rng.permutation(np.flatnonzero((missing == 0) & forward)).tolist()
    rank, place = np.full(count, -1.0), 0
    while ready:
        current = ready.pop()
        rank[current] = place
        place += 1
        for following in rng.permutation(pairs[starts[current] : starts[current + 1], 1]).tolist():
            missing[following] -= 1
            if missing[following] == 0:
                ready.append(following)
    rank = rank[circle]
    rank[np.bincount(label[~workload.is_backward], minlength=count) == 0] = -1.0
    while (rank < 0).any():
        _rank_by_neighbours(rank, label[workload.edges])
    return np.argsort(rank, kind="stable")


def _rank_by_neighbours(rank: Floats, pairs: Ints) -> None:
    """Rank what has no rank yet beside its ranked neighbours; where nothing has any, last."""
    known = rank >= 0
    total, times = np.zeros_like(rank), np.zeros_like(rank)
    for source, target in ((pairs[:, 0], pairs[:, 1]), (pairs[:, 1], pairs[:, 0])):
        np.add.at(total, target, np.where(known[source], rank[source], 0.0))
        np.add.at(times, target, known[source])
    found = ~known & (times > 0)
    rank[found] = total[found] / times[found]
    if not found.any():
        rank[~known] = rank.max() + 1


def _numbered(workload: Workload, label: Ints, order: Ints) -> Units:
    count = len(order)
    number = np.empty(count, np.int64)
    number[order] = np.arange(count)
    of_node = number[label]
    members = np.argsort(of_node, kind="stable")
    pairs = of_node[workload.edges]
    pairs = np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    bounds = np.arange(count + 1)
    return Units(
        of_node=of_node,
        start=np.searchsorted(of_node[members], bounds).astype(np.int64),
        members=members.astype(np.int64),
        near_start=np.searchsorted(pairs[:, 0], bounds).astype(np.int64),
        near=np.ascontiguousarray(pairs[:, 1]),
        free=np.bincount(of_node[~workload.supported], minlength=count) == 0,
    )


def cut(workload: Workload, units: Units, *, total: bool) -> Ints:
    """Cut the units' order into one run for each accelerator and one for the CPUs.

    An exact dynamic program over runs of this one order, with what each run computes, receives and sends. Units that no
    accelerator can run are on the CPUs throughout.

    Args:
        workload: what is placed.
        units: in the order that is cut.
        total: minimise the sum of the runs' times (one sample passes them one after the other), else the longest.

    Returns:
        Device of every unit, `int64[u]`; all on the CPUs if nothing else fits.
    """
    count = len(units.free)
    stride = -(-count // MOST_CUTS)
    cuts = np.append(np.arange(0, count, stride), count)
    loads, held = _runs(workload.flow, units, cuts)
    loads[held > workload.accelerator_bytes] = np.inf
    alone = np.zeros(count)
    np.add.at(alone, units.of_node, workload.cpu_ms)
    on_cpu = np.concatenate([[0.0], np.cumsum(alone)])[cuts]
    if workload.cpus == 0:
        on_cpu = np.where(np.arange(len(cuts)) > 0, np.inf, 0.0)
    runs = _best_runs(loads, on_cpu, workload.accelerators, total)
    devices = np.repeat(runs, np.diff(cuts))
    devices[~units.free] = CPU
    return devices


@njit(cache=True)
def _runs(flow: Flow, units: Units, cuts: Ints) -> tuple[Floats, Floats]:
    """Load and bytes of an accelerator that runs the units from cut `i` to cut `j`, `float64[c, c]` each."""
    count = cuts.shape[0]
    loads, held = np.full((count, count), np.inf), np.full((count, count), np.inf)
    inside = np.zeros(flow.cost_ms.shape[0], np.bool_)
    within = np.zeros(flow.cost_ms.shape[0], np.int64)
    for i in range(count - 1):
        inside[:] = False
        within[:] = 0
        load = size = 0.0
        for j in range(i + 1, count):
            for unit in range(cuts[j - 1], cuts[j]):
                for member in range(units.start[unit], units.start[unit + 1]):
                    if units.free[unit]:
                        node = units.members[member]
                        load += _joins(flow, node, inside, within)
                        size += flow.size_bytes[node]
            loads[i, j] = max(load, 0.0)
            held[i, j] = size
    return loads, held


@njit(cache=True)
def _joins(flow: Flow, node: int, inside: Bools, within: Ints) -> float:
    """What the load grows by when a node joins the run; `within` counts every node's consumers in the run."""
    grows = flow.accelerator_ms[node]
    inside[node] = True
    for edge in range(flow.in_start[node], flow.in_start[node + 1]):
        producer = flow.producers[edge]
        within[producer] += 1
        if inside[producer]:
            if within[producer] == flow.out_start[producer + 1] - flow.out_start[producer]:
                grows -= flow.cost_ms[producer]
        elif within[producer] == 1:
            grows += flow.cost_ms[producer]
    if within[node] > 0:
        grows -= flow.cost_ms[node]
    if within[node] < flow.out_start[node + 1] - flow.out_start[node]:
        grows += flow.cost_ms[node]
    return grows


@njit(cache=True)
def _best_runs(loads: Floats, on_cpu: Floats, accelerators: int, total: bool) -> Ints:
    """Device of every piece between two cuts; `best[c, k, j]` covers the first `j` with `k` accelerators, `c` the CPUs."""
    count = on_cpu.shape[0]
    best = np.full((2, accelerators + 1, count), np.inf)
    start = np.zeros((2, accelerators + 1, count), np.int64)
    by_cpu = np.zeros((2, accelerators + 1, count), np.bool_)
    best[:, :, 0] = 0.0
    for c in range(2):
        for k in range(accelerators + 1):
            for j in range(1, count):
                for i in range(j):
                    if k > 0:
                        own, before = loads[i, j], best[c, k - 1, i]
                        value = own + before if total else max(own, before)
                        if value < best[c, k, j]:
                            best[c, k, j], start[c, k, j], by_cpu[c, k, j] = value, i, False
                    if c > 0:
                        own, before = on_cpu[j] - on_cpu[i], best[0, k, i]
                        value = own + before if total else max(own, before)
                        if value < best[c, k, j]:
                            best[c, k, j], start[c, k, j], by_cpu[c, k, j] = value, i, True
    devices = np.zeros(count - 1, np.int64)
    if np.isfinite(best[1, accelerators, count - 1]):
        c, k, j = 1, accelerators, count - 1
        while j > 0:
            i = start[c, k, j]
            if by_cpu[c, k, j]:
                devices[i:j] = 0
                c = 0
            else:
                devices[i:j] = k
                k -= 1
            j = i
    return devices
