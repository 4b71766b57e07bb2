"""`coarsen`: ops merged into groups that move together, and the hierarchy of units a move can take.

Bottom-up clustering as multilevel graph partitioners do it, kept acyclic (Herrmann et al., "Multilevel Algorithms for Acyclic
Partitioning of Directed Acyclic Graphs", SISC 2019), except that a merge is checked exactly by searching for a second path
between the two groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .costs import roofline
from .errors import SegueError
from .graph import Graph
from .stages import adjacency

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

COARSEST = 4
_DEPTH = 6  # module path parts that are compared
_CHAIN, _EDGE, _SIBLING, _NEIGHBOUR = range(4)


@dataclass(frozen=True, eq=False)
class Groups:
    """Ops that move together, and sets of groups that make sense as one move.

    Attributes:
        group_of: group of every op, `int64[n]`; groups are numbered by their first op.
        units: sets of group ids, each `int64[k]` ascending, from the coarsest partition (about four units) to the single
            groups; every set occurs once.
    """

    group_of: Ints
    units: tuple[Ints, ...]

    @property
    def num_groups(self) -> int:
        """Number of groups."""
        return int(self.group_of.max()) + 1

    def first_op(self) -> Ints:
        """The first op of each group, `int64[groups]`."""
        return np.unique(self.group_of, return_index=True)[1].astype(np.int64)


def coarsen(graph: Graph, max_groups: int) -> Groups:
    """Merge ops into at most `max_groups` groups.

    Chains merge first, light ones and those with heavy edges before others; then neighbours and siblings, sooner if they
    belong to the same module. No merge makes a cycle between groups, and ops of one colocation class always share a group.
    Where colocation itself forces a cycle (a weight tied between the first and the last layer), the class stays a group of
    its own that takes in nothing else.

    Args:
        graph: what to coarsen.
        max_groups: most groups wanted.

    Raises:
        SegueError: if `max_groups` < 1.
    """
    if max_groups < 1:
        raise SegueError(f"coarsen: max_groups must be >= 1, got {max_groups}")
    merger = _Merger(graph)
    merger.reduce(max_groups)
    group_of = merger.labels(max_groups)
    levels = [np.arange(group_of.max() + 1)]
    first = np.unique(group_of, return_index=True)[1]
    target = 1 << max(0, int(np.ceil(np.log2(len(first)))) - 1)
    while target >= min(COARSEST, len(first)):
        merger.reduce(target)
        levels.append(merger.labels(target)[first])
        target //= 2
    return Groups(group_of, _units(levels[::-1]))


def _units(levels: Sequence[Ints]) -> tuple[Ints, ...]:
    """The distinct blocks of the partitions, in order."""
    seen: set[bytes] = set()
    units = []
    for level in levels:
        for block in np.unique(level):
            unit = np.flatnonzero(level == block).astype(np.int64)
            if unit.tobytes() not in seen:
                seen.add(unit.tobytes())
                units.append(unit)
    return tuple(units)


class _Merger:
    """Groups being merged; `group_of[op]` is the op that represents its group."""

    def __init__(self, graph: Graph):
        count = graph.num_ops
        edges = adjacency(graph)
        self.out_start, self.targets = edges.out_start, edges.targets
        self.source = np.repeat(np.arange(count), np.diff(edges.out_start))
        self.bytes = graph.output_bytes[self.source]
        self.colocation = graph.colocation
        self.prefix = _prefixes(graph.modules)
        self.weight = _weights(graph)
        self.total = float(self.weight.sum())
        self.group_of = np.arange(count)
        self.next_op = np.full(count, -1)
        self.last = np.arange(count)
        self.stamp = np.zeros(count + 1, np.int64)  # the last entry counts searches
        self.order = np.arange(count)  # a topological order of the groups
        self.pinned = np.zeros(count, bool)
        self._colocate()

    def _colocate(self) -> None:
        for label in np.unique(self.colocation[self.colocation >= 0]):
            members = np.flatnonzero(self.colocation == label)
            pairs = np.stack([members[:-1], members[1:]], axis=1)
            before = self.groups().size
            self._merge(pairs, np.inf, before - len(pairs), repeat=True)
            if self.groups().size > before - len(pairs):
                self.pinned[self.group_of[members]] = True

    def groups(self) -> Ints:
        """Representatives, ascending."""
        return np.flatnonzero(self.group_of == np.arange(len(self.group_of)))

    def size(self) -> int:
        """Number of groups once pinned classes are one group each."""
        groups = self.groups()
        pinned = groups[self.pinned[groups]]
        return groups.size - pinned.size + np.unique(self.colocation[pinned]).size

    def reduce(self, target: int) -> None:
        """Merge until `target` groups are left or nothing can be merged."""
        limit = 1.5 * self.total / target
        while (size := self.size()) > target:
            kind, pairs = self._candidates()
            merged = self._merge(pairs[kind == _CHAIN], limit, size - target)
            if not merged:
                merged = self._merge(pairs[kind != _CHAIN], limit, size - target)
            if not merged:
                if limit > self.total:
                    return
                limit *= 2

    def _merge(self, pairs: Ints, limit: float, most: int, repeat: bool = False) -> int:
        """Merge pairs in the given order where allowed, at most `most` of them; a group merges once unless `repeat`."""
        return _merge_pairs(
            np.ascontiguousarray(pairs), limit, most, repeat, self.weight, self.pinned, self.out_start, self.targets,
            self.group_of, self.next_op, self.last, self.stamp, self.order,
        )  # fmt: skip

    def _candidates(self) -> tuple[Ints, Ints]:
        """Pairs of groups worth merging, best first, with their kinds."""
        a, b = self.group_of[self.source], self.group_of[self.targets]
        count = len(self.group_of)
        between = (a != b) & ~self.pinned[a] & ~self.pinned[b]
        code, inverse = np.unique(a[between] * count + b[between], return_inverse=True)
        volume = np.bincount(inverse, self.bytes[between], len(code))
        source, target = code // count, code % count
        outputs, inputs = np.bincount(source, minlength=count), np.bincount(target, minlength=count)
        chain = (outputs[source] == 1) & (inputs[target] == 1)
        free = self.groups()
        free = free[~self.pinned[free]]
        by_target = np.lexsort((source, target))
        siblings = [_beside(source, target), _beside(target[by_target], source[by_target])]
        pairs = np.concatenate([np.stack([source, target], 1), *siblings, np.stack([free[:-1], free[1:]], 1)])
        extra = len(pairs) - len(code)
        kind = np.concatenate([np.where(chain, _CHAIN, _EDGE), np.full(extra, _SIBLING)])
        kind[len(pairs) - max(0, len(free) - 1) :] = _NEIGHBOUR
        volume = np.concatenate([volume, np.zeros(extra)]).astype(np.float64)
        return self._sorted(kind, pairs, volume)

    def _sorted(self, kind: Ints, pairs: Ints, volume: Floats) -> tuple[Ints, Ints]:
        shared = self._shared_depth(pairs)
        weight = self.weight[pairs].sum(axis=1) / max(self.weight[self.groups()].max(), 1e-30)
        cost = weight - 0.5 * volume / max(volume.max(initial=0.0), 1e-30) - shared
        cost += np.array([0.0, 0.0, 0.5, 2.0])[kind]
        order = np.argsort(cost, kind="stable")
        return kind[order], pairs[order]

    def _shared_depth(self, pairs: Ints) -> Floats:
        """Share of leading module path parts that all ops of both groups have in common."""
        low, high = _extremes(self.group_of, self.prefix)
        a, b = pairs.T
        same = (np.minimum(low[a], low[b]) == np.maximum(high[a], high[b])) & (low[a] > 0)
        return np.logical_and.accumulate(same, axis=1).mean(axis=1)

    def labels(self, most: int) -> Ints:
        """Group of every op, numbered by first op, pinned classes joined and, if those are too many, folded."""
        label = self.group_of.copy()
        pinned = self.pinned[self.group_of]
        for value in np.unique(self.colocation[pinned]):
            members = pinned & (self.colocation == value)
            label[members] = label[members].min()
        while len(groups := np.unique(label)) > most:
            # Only colocation that is all cycles gets here: merge the lightest neighbours.
            weight = np.bincount(np.searchsorted(groups, label), self.weight[self.group_of])
            lightest = int(np.argmin(weight[:-1] + weight[1:]))
            label[label == groups[lightest + 1]] = groups[lightest]
        _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        return rank[inverse]


def _beside(key: Ints, value: Ints) -> Ints:
    """Pairs of consecutive values with the same key; `key` is sorted."""
    same = key[:-1] == key[1:]
    return np.stack([value[:-1][same], value[1:][same]], axis=1)


def _prefixes(modules: Sequence[str]) -> Ints:
    """Numbers of the first parts of each module path, `int64[n, _DEPTH]`; 0 where the path has ended."""
    known: dict[tuple[str, ...], int] = {}
    result = np.zeros((len(modules), _DEPTH), np.int64)
    for row, module in enumerate(modules):
        parts = tuple(module.split(".")) if module else ()
        for depth in range(min(len(parts), _DEPTH)):
            result[row, depth] = known.setdefault(parts[: depth + 1], len(known) + 1)
    return result


def _weights(graph: Graph) -> Floats:
    """Share of each op in what a device has to carry: compute or memory, whichever is larger."""
    profile = roofline(graph)
    columns = (profile.forward_s + profile.backward_s, graph.parameter_bytes, graph.saved_bytes)
    shares = [column / column.sum() for column in columns if column.sum() > 0]
    return np.maximum(np.max(shares, axis=0, initial=0.0), 0.01 / graph.num_ops) if shares else np.ones(graph.num_ops)


@njit(cache=True)
def _extremes(group_of: Ints, prefix: Ints) -> tuple[Ints, Ints]:
    """The least and the largest number in every column of each group's ops, at the op that represents it."""
    low, high = prefix.copy(), prefix.copy()
    for op in range(prefix.shape[0]):
        for column in range(prefix.shape[1]):
            low[group_of[op], column] = min(low[group_of[op], column], prefix[op, column])
            high[group_of[op], column] = max(high[group_of[op], column], prefix[op, column])
    return low, high


@njit(cache=True)
def _merge_pairs(
    pairs: Ints, limit: float, most: int, repeat: bool, weight: Floats, pinned: Bools, out_start: Ints, targets: Ints,
    group_of: Ints, next_op: Ints, last: Ints, stamp: Ints, order: Ints,
) -> int:  # fmt: skip
    merged = 0
    taken = np.zeros(group_of.shape[0], np.bool_)
    stack = np.empty(group_of.shape[0], np.int64)
    at = _close_ranks(group_of, order)
    for row in range(pairs.shape[0]):
        if merged >= most:
            break
        a, b = int(group_of[pairs[row, 0]]), int(group_of[pairs[row, 1]])
        if a == b or pinned[a] or pinned[b] or weight[a] + weight[b] > limit:
            continue
        if not repeat and (taken[a] or taken[b]):
            continue
        if order[a] > order[b]:
            a, b = b, a
        if _other_path(a, b, out_start, targets, group_of, next_op, stamp, order, stack):
            continue
        _make_adjacent(a, b, stamp, order, at, stack)
        a, b = min(a, b), max(a, b)
        order[a] = max(order[a], order[b])
        at[order[a]], at[order[a] - 1] = a, -1
        op = b
        while op >= 0:
            group_of[op] = a
            op = next_op[op]
        next_op[last[a]] = b
        last[a] = last[b]
        weight[a] += weight[b]
        taken[a] = True
        merged += 1
    return merged


@njit(cache=True)
def _close_ranks(group_of: Ints, order: Ints) -> Ints:
    """Renumber the groups' order without gaps; returns the group at each place, -1 beyond the last."""
    at = np.full(order.shape[0], -1)
    for group in range(order.shape[0]):
        if group_of[group] == group:
            at[order[group]] = group
    place = 0
    for group in at.copy():
        if group >= 0:
            at[place], order[group] = group, place
            place += 1
    at[place:] = -1
    return at


@njit(cache=True)
def _other_path(
    source: int, target: int, out_start: Ints, targets: Ints, group_of: Ints, next_op: Ints, stamp: Ints, order: Ints,
    stack: Ints,
) -> bool:  # fmt: skip
    """Whether a path leads from `source` to `target` through some other group; if not, what it leads to is stamped.

    Only groups between the two in topological order are looked at.
    """
    stamp[-1] += 1
    mark = stamp[-1]
    stamp[source] = mark
    stack[0] = source
    size = 1
    while size > 0:
        size -= 1
        group = stack[size]
        op = group
        while op >= 0:
            for e in range(out_start[op], out_start[op + 1]):
                other = group_of[targets[e]]
                if other == target:
                    if group != source:
                        return True
                elif stamp[other] != mark and order[other] < order[target]:
                    stamp[other] = mark
                    stack[size] = other
                    size += 1
            op = next_op[op]
    return False


@njit(cache=True)
def _make_adjacent(a: int, b: int, stamp: Ints, order: Ints, at: Ints, after: Ints) -> None:
    """Move `a` next to `b`, to which it has no other path: what it leads to (stamped) goes behind both."""
    place, count = order[a], 0
    for where in range(order[a] + 1, order[b]):
        group = at[where]
        if group >= 0 and stamp[group] == stamp[-1]:
            after[count] = group
            count += 1
        elif group >= 0:
            at[place], order[group] = group, place
            place += 1
    last = order[b]
    for group in (a, b):
        at[place], order[group] = group, place
        place += 1
    for row in range(count):
        at[place], order[after[row]] = after[row], place
        place += 1
    at[place : last + 1] = -1
