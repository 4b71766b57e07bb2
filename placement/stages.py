"""Stages: a placement cut into maximal runs of ops between transfers, and the messages between them.

An op opens a new level when one of its inputs crosses a device boundary or is itself sent elsewhere (so that a transfer never
waits for ops behind it). Ops of one device and level that are connected form a stage. Every edge between two stages goes to
a higher level, so stages never form a cycle, whatever the map.
"""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .graph import Graph

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Adjacency(NamedTuple):
    """A graph's edges in both directions, `e` edges sorted by source.

    `targets[out_start[i]:out_start[i + 1]]` are op `i`'s consumers, ascending; `sources[in_start[i]:in_start[i + 1]]` its
    producers and `in_edge` the same edges' positions in `targets`.
    """

    out_start: Ints
    targets: Ints
    in_start: Ints
    sources: Ints
    in_edge: Ints


class Stages(NamedTuple):
    """The stage graph of one placement, `s` stages in topological order.

    Attributes:
        stage_of: stage of every op, `int64[n]`.
        device: device of every stage.
        level: level of every stage.
        has_backward: whether the stage has a backward pass.
        op_start: ops of stage `i` are `ops[op_start[i]:op_start[i + 1]]`, ascending.
        ops: see `op_start`.
        succ_start: stages that read from stage `i` are `succ[succ_start[i]:succ_start[i + 1]]`, by device.
        succ: see `succ_start`.
        grad_start: stages that stage `i` sends gradients to are `grad[grad_start[i]:grad_start[i + 1]]`, by device.
        grad: see `grad_start`.
        num_pred: stages that stage `i` reads from.
        num_grad_pred: stages that send stage `i` gradients.
        out_bytes: bytes of the forward message from a stage to the device of `succ[j]`; the whole message stands at the
            first successor on that device, 0 at the others.
        grad_bytes: the same for gradients, beside `grad`.
        grad_parts: bytes of them that are for each stage of `grad`, also within the own device.
    """

    stage_of: Ints
    device: Ints
    level: Ints
    has_backward: Bools
    op_start: Ints
    ops: Ints
    succ_start: Ints
    succ: Ints
    grad_start: Ints
    grad: Ints
    num_pred: Ints
    num_grad_pred: Ints
    out_bytes: Floats
    grad_bytes: Floats
    grad_parts: Floats


def adjacency(graph: Graph) -> Adjacency:
    """The compiled form of a graph's edges."""
    edges = graph.edges[np.lexsort((graph.edges[:, 1], graph.edges[:, 0]))]
    count = graph.num_ops
    by_target = np.lexsort((edges[:, 0], edges[:, 1]))
    bounds = np.arange(count + 1)
    return Adjacency(
        out_start=np.searchsorted(edges[:, 0], bounds).astype(np.int64),
        targets=np.ascontiguousarray(edges[:, 1]),
        in_start=np.searchsorted(edges[by_target, 1], bounds).astype(np.int64),
        sources=np.ascontiguousarray(edges[by_target, 0]),
        in_edge=by_target.astype(np.int64),
    )


def waiting_bytes(stages: Stages) -> Floats:
    """Bytes of gradients that wait on a stage's device for other stages of it: what its backward adds, `float64[s]`."""
    count = stages.device.shape[0]
    source = np.repeat(np.arange(count), np.diff(stages.grad_start))
    parts = np.where(stages.device[source] == stages.device[stages.grad], stages.grad_parts, 0.0)
    given, used = np.bincount(source, parts, count), np.bincount(stages.grad, parts, count)
    return np.asarray(given - used, np.float64)


@njit(cache=True)
def build_stages(
    devices: Ints, edges: Adjacency, requires_grad: Bools, output_bytes: Floats, num_devices: int
) -> Stages:
    """Cut a placement into stages (see the module's text) in time linear in ops and edges."""
    count = devices.shape[0]
    level = _levels(devices, edges, requires_grad)
    stage_of, stage_level = _components(devices, edges, level)
    num_stages = stage_level.shape[0]
    device = np.empty(num_stages, np.int64)
    has_backward = np.zeros(num_stages, np.bool_)
    for op in range(count):
        device[stage_of[op]] = devices[op]
        has_backward[stage_of[op]] |= requires_grad[op]
    op_start, ops = _sort_by(stage_of, num_stages)

    slot = gradient_slots(edges, stage_of, requires_grad)
    source, target, has_grad, pair_grad_bytes = _pairs(
        edges, stage_of, op_start, ops, slot, requires_grad, output_bytes
    )
    num_pred = np.bincount(target, minlength=num_stages).astype(np.int64)
    num_grad_pred = np.bincount(source[has_grad], minlength=num_stages).astype(np.int64)

    order = _sort_by(device[target], num_devices)[1]
    succ_start, by_source = _sort_by(source[order], num_stages)
    succ = target[order[by_source]]
    out_bytes = _message_bytes(edges, devices, op_start, ops, succ_start, succ, device, output_bytes, num_devices)

    kept = np.flatnonzero(has_grad)
    order = kept[_sort_by(device[source[kept]], num_devices)[1]]
    grad_start, by_target = _sort_by(target[order], num_stages)
    order = order[by_target]
    grad = source[order]
    grad_parts = pair_grad_bytes[order]
    grad_bytes = _merge_by_device(grad_start, grad, device, grad_parts)
    return Stages(
        stage_of, device, stage_level, has_backward, op_start, ops, succ_start, succ, grad_start, grad,
        num_pred, num_grad_pred, out_bytes, grad_bytes, grad_parts,
    )  # fmt: skip


@njit(cache=True)
def _sort_by(keys: Ints, num_keys: int) -> tuple[Ints, Ints]:
    """Stable counting sort: start of each key's run, and the positions in order."""
    start = np.zeros(num_keys + 1, np.int64)
    for key in keys:
        start[key + 1] += 1
    for key in range(num_keys):
        start[key + 1] += start[key]
    fill = start[:-1].copy()
    order = np.empty(keys.shape[0], np.int64)
    for position in range(keys.shape[0]):
        order[fill[keys[position]]] = position
        fill[keys[position]] += 1
    return start, order


@njit(cache=True)
def _levels(devices: Ints, edges: Adjacency, requires_grad: Bools) -> Ints:
    count = devices.shape[0]
    sent = np.zeros(count, np.bool_)
    level = np.zeros(count, np.int64)
    for op in range(count):
        for e in range(edges.out_start[op], edges.out_start[op + 1]):
            if devices[edges.targets[e]] != devices[op]:
                sent[op] = True
    for op in range(count):
        for e in range(edges.in_start[op], edges.in_start[op + 1]):
            source = edges.sources[e]
            level[op] = max(level[op], level[source] + sent[source])
    # Masks and positions need no gradient and wait for nothing: they join the stage that first reads them.
    for op in range(count - 1, -1, -1):
        if level[op] == 0 and not requires_grad[op] and not sent[op]:
            first = np.int64(count)
            for e in range(edges.out_start[op], edges.out_start[op + 1]):
                first = min(first, level[edges.targets[e]])
            level[op] = first if first < count else 0
    return level


@njit(cache=True)
def _find(parent: Ints, op: int) -> int:
    while parent[op] != op:
        parent[op] = parent[parent[op]]
        op = parent[op]
    return op


@njit(cache=True)
def _components(devices: Ints, edges: Adjacency, level: Ints) -> tuple[Ints, Ints]:
    """Connected ops of one device and level, numbered by level and first op."""
    count = devices.shape[0]
    parent = np.arange(count)
    for op in range(count):
        for e in range(edges.in_start[op], edges.in_start[op + 1]):
            source = edges.sources[e]
            if devices[source] == devices[op] and level[source] == level[op]:
                a, b = _find(parent, source), _find(parent, op)
                parent[max(a, b)] = min(a, b)
    roots = np.empty(count, np.int64)
    num_roots = 0
    for op in range(count):
        if _find(parent, op) == op:
            roots[num_roots] = op
            num_roots += 1
    roots = roots[:num_roots]
    order = _sort_by(level[roots], count + 1)[1]
    stage_of = np.empty(count, np.int64)
    for stage in range(num_roots):
        stage_of[roots[order[stage]]] = stage
    for op in range(count):
        stage_of[op] = stage_of[_find(parent, op)]
    return stage_of, level[roots[order]]


@njit(cache=True)
def gradient_slots(edges: Adjacency, stage_of: Ints, requires_grad: Bools) -> Ints:
    """Tensors of gradient that travel back along each edge: 0 or 1.

    Gradients of a value are added from its last consumer to its first. A stage that holds the last consumers adds theirs
    itself and sends one tensor; other consumers' gradients travel one by one, so that the sum is the same wherever ops
    run.
    """
    slot = np.zeros(edges.targets.shape[0], np.int64)
    for op in range(stage_of.shape[0]):
        if not requires_grad[op]:
            continue
        leading = np.int64(-1)
        in_lead = True
        for e in range(edges.out_start[op + 1] - 1, edges.out_start[op] - 1, -1):
            target = edges.targets[e]
            if not requires_grad[target]:
                continue
            stage = stage_of[target]
            if leading < 0:
                leading = stage
                slot[e] = 1
            else:
                in_lead = in_lead and stage == leading
                slot[e] = 0 if in_lead else 1
    return slot


@njit(cache=True)
def _pairs(
    edges: Adjacency,
    stage_of: Ints,
    op_start: Ints,
    ops: Ints,
    slot: Ints,
    requires_grad: Bools,
    output_bytes: Floats,
) -> tuple[Ints, Ints, Bools, Floats]:
    """Unique (source stage, target stage), whether a gradient flows back, and how many bytes of it."""
    num_edges, num_stages = edges.targets.shape[0], op_start.shape[0] - 1
    source = np.empty(num_edges, np.int64)
    target = np.empty(num_edges, np.int64)
    has_grad = np.zeros(num_edges, np.bool_)
    grad_bytes = np.zeros(num_edges, np.float64)
    pair_of = np.full(num_stages, -1, np.int64)
    count = 0
    for stage in range(num_stages):
        first = count
        for position in range(op_start[stage], op_start[stage + 1]):
            op = ops[position]
            for e in range(edges.in_start[op], edges.in_start[op + 1]):
                producer = edges.sources[e]
                other = stage_of[producer]
                if other == stage:
                    continue
                if pair_of[other] < first:
                    pair_of[other] = count
                    source[count] = other
                    target[count] = stage
                    count += 1
                pair = pair_of[other]
                if requires_grad[producer] and requires_grad[op]:
                    has_grad[pair] = True
                    grad_bytes[pair] += slot[edges.in_edge[e]] * output_bytes[producer]
    return source[:count], target[:count], has_grad[:count], grad_bytes[:count]


@njit(cache=True)
def _message_bytes(
    edges: Adjacency,
    devices: Ints,
    op_start: Ints,
    ops: Ints,
    succ_start: Ints,
    succ: Ints,
    device: Ints,
    output_bytes: Floats,
    num_devices: int,
) -> Floats:
    """Bytes of each forward message: every value once per receiving device."""
    result = np.zeros(succ.shape[0], np.float64)
    message = np.full(num_devices, -1, np.int64)
    last_op = np.full(num_devices, -1, np.int64)
    for stage in range(op_start.shape[0] - 1):
        for j in range(succ_start[stage + 1] - 1, succ_start[stage] - 1, -1):
            message[device[succ[j]]] = j
        for position in range(op_start[stage], op_start[stage + 1]):
            op = ops[position]
            for e in range(edges.out_start[op], edges.out_start[op + 1]):
                where = devices[edges.targets[e]]
                if where != devices[op] and last_op[where] != op:
                    last_op[where] = op
                    result[message[where]] += output_bytes[op]
    return result


@njit(cache=True)
def _merge_by_device(start: Ints, stages: Ints, device: Ints, values: Floats) -> Floats:
    """Sum neighbouring entries of one device into the first of them; 0 within the own device."""
    result = np.zeros(values.shape[0], np.float64)
    for stage in range(start.shape[0] - 1):
        first = start[stage]
        for j in range(start[stage], start[stage + 1]):
            if device[stages[j]] != device[stages[first]]:
                first = j
            if device[stages[j]] != device[stage]:
                result[first] += values[j]
    return result
