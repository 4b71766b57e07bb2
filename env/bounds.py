"""Bounds of a pipelined step: its critical path, its fullest device and its fullest link, now and after every move.

They say what a step takes at least if nothing waits without need, cost about a microsecond a move, and are what the policy
knows of a move before the clock is asked.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Pipeline(NamedTuple):
    """Groups as the bounds see them, `n` of them with `e` edges on `d` devices.

    Attributes:
        order: groups in topological order, `int64[n]`.
        in_start: edges into group `i` are `in_start[i]` to `in_start[i + 1]`.
        source: their sources, `int64[e]`.
        step_s: seconds of a step in each group on each device, `float64[n, d]`.
        edge_bytes: bytes of a step over each edge, `float64[e]`.
        edge_messages: messages likewise.
        latency_s: between two devices, `float64[d, d]`.
        seconds_per_byte: likewise.
        microbatches: in a step.
        steady: whether what counts is the load of the busiest device, transfers included, not the time of one step.
    """

    order: Ints
    in_start: Ints
    source: Ints
    step_s: Floats
    edge_bytes: Floats
    edge_messages: Floats
    latency_s: Floats
    seconds_per_byte: Floats
    microbatches: int
    steady: bool


class Bounds(NamedTuple):
    """Seconds, each a number now or `float64[u, d]` after moves.

    Attributes:
        path: the longest chain of computation and transfers that one microbatch waits for, forward and backward.
        load: compute of the fullest device in a step; where steady, with its transfers.
        link: transfers over the fullest pair of devices in a step, one way.
        estimate: of the step: one microbatch passes, the others follow at the pace of the narrowest place; the load where
            steady.
    """

    path: Floats
    load: Floats
    link: Floats
    estimate: Floats


def make_pipeline(
    compute: Floats, edges: Ints, volume: Floats, messages: Floats, latency: Floats, pace: Floats, microbatches: int,
    steady: bool = False,
) -> Pipeline:  # fmt: skip
    """Sort the edges between groups by their target, and drop what closes a circle (colocation can force one)."""
    count = len(compute)
    order = _topological(edges, count)
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(count)
    kept = np.flatnonzero(rank[edges[:, 0]] < rank[edges[:, 1]])
    kept = kept[np.argsort(edges[kept, 1], kind="stable")]
    start = np.searchsorted(edges[kept, 1], np.arange(count + 1)).astype(np.int64)
    source = np.ascontiguousarray(edges[kept, 0])
    return Pipeline(order, start, source, compute, volume[kept], messages[kept], latency, pace, microbatches, steady)


def _topological(edges: Ints, count: int) -> Ints:
    """Groups so that edges run forward, the smallest number first among those that may come next."""
    missing = np.bincount(edges[:, 1], minlength=count)
    order: list[int] = []
    left = set(range(count))
    while left:
        free = min((group for group in left if missing[group] <= 0), default=min(left))
        left.remove(free)
        order.append(free)
        missing[edges[edges[:, 0] == free, 1]] -= 1
    return np.array(order, np.int64)


def bounds_now(pipeline: Pipeline, home: Ints) -> tuple[Bounds, Floats]:
    """Bounds of a step with each group on its device, and the longest chain through each group, `float64[n]`."""
    now = _bounds(pipeline, home)
    return _with_estimate(pipeline, *(np.asarray(seconds) for seconds in now)), _through(pipeline, home)


def bounds_after(pipeline: Pipeline, home: Ints, member: Bools, swaps_with: Ints) -> Bounds:
    """Bounds after each unit has moved to each device, `float64[u, d]` each.

    Args:
        pipeline: the groups.
        home: device of every group, `int64[n]`.
        member: groups in each unit, `bool[u, n]`.
        swaps_with: where the groups of the device that a unit goes to go in exchange, -1 if they stay, `int64[u]`.
    """
    return _with_estimate(pipeline, *_after(pipeline, home, member, swaps_with))


def _with_estimate(pipeline: Pipeline, path: Floats, load: Floats, link: Floats) -> Bounds:
    narrow = np.maximum(load, link)
    estimate = load if pipeline.steady else np.maximum(path + (1 - 1 / pipeline.microbatches) * narrow, narrow)
    return Bounds(path, load, link, estimate)


@njit(cache=True)
def _scratch(pipeline: Pipeline) -> tuple[Floats, Floats, Floats]:
    count, devices = pipeline.step_s.shape
    return np.zeros(count), np.zeros(devices), np.zeros((devices, devices))


@njit(cache=True)
def _bounds(pipeline: Pipeline, home: Ints) -> tuple[Any, Any, Any]:
    done, loads, links = _scratch(pipeline)
    path, link = _pass(pipeline, home, 0, home.shape[0], 0.0, 0.0, done, loads, links)
    return path, loads.max(), link


@njit(cache=True)
def _pass(
    pipeline: Pipeline, home: Ints, begin: Any, end: Any, path: Any, link: Any, done: Floats, loads: Floats, links: Floats
) -> tuple[Any, Any]:  # fmt: skip
    """Go on with the groups from place `begin` to `end` of the order; the longest path and the fullest link so far.

    `done` (when each group is), `loads` and `links` hold what comes before, and take in what is gone through.
    """
    share = 1.0 / pipeline.microbatches
    for place in range(begin, end):
        group = pipeline.order[place]
        here = home[group]
        ready = 0.0
        for edge in range(pipeline.in_start[group], pipeline.in_start[group + 1]):
            source = pipeline.source[edge]
            there = home[source]
            arrives = done[source]
            if there != here:
                seconds = pipeline.edge_messages[edge] * pipeline.latency_s[there, here]
                seconds += pipeline.edge_bytes[edge] * pipeline.seconds_per_byte[there, here]
                arrives += seconds * share
                low, high = min(here, there), max(here, there)
                links[low, high] += 0.5 * seconds
                if pipeline.steady:
                    loads[here] += seconds
                    loads[there] += seconds
                link = max(link, links[low, high])
            ready = max(ready, arrives)
        loads[here] += pipeline.step_s[group, here]
        done[group] = ready + pipeline.step_s[group, here] * share
        path = max(path, done[group])
    return path, link


@njit(cache=True)
def _set_back(pipeline: Pipeline, home: Ints, begin: Any, end: Any, links: Floats, kept: Floats) -> None:
    """Make `links` what `kept` is; of many pairs of devices, those that groups from `begin` to `end` use may differ."""
    for place in range(begin, end):
        group = pipeline.order[place]
        for edge in range(pipeline.in_start[group], pipeline.in_start[group + 1]):
            here, there = home[group], home[pipeline.source[edge]]
            links[min(here, there), max(here, there)] = kept[min(here, there), max(here, there)]


@njit(cache=True)
def _after(pipeline: Pipeline, home: Ints, member: Bools, swaps_with: Ints) -> tuple[Floats, Floats, Floats]:
    """Units one after the other by where they begin: what comes before in the order is gone through once for all of them."""
    (units, count), devices = member.shape, pipeline.step_s.shape[1]
    path, load, link = np.empty((units, devices)), np.empty((units, devices)), np.empty((units, devices))
    done, before, links = _scratch(pipeline)
    kept, loads, moved = np.zeros_like(links), np.zeros_like(before), home.copy()
    first, whole = _begin(pipeline, home, member, swaps_with)
    place, longest, fullest = 0, 0.0, 0.0
    now = _bounds(pipeline, home)
    for unit in np.argsort(first):
        longest, fullest = _pass(pipeline, home, place, first[unit], longest, fullest, done, before, kept)
        _set_back(pipeline, home, place, first[unit], links, kept)
        place = first[unit]
        for device in range(devices):
            if whole[unit] == device:
                path[unit, device], load[unit, device], link[unit, device] = now
                continue
            for group in range(count):
                moved[group] = home[group]
                if member[unit, group]:
                    moved[group] = device
                elif swaps_with[unit] >= 0 and home[group] == device:
                    moved[group] = swaps_with[unit]
            loads[:] = before
            path[unit, device], link[unit, device] = _pass(
                pipeline, moved, place, count, longest, fullest, done, loads, links
            )
            load[unit, device] = loads.max()
            _set_back(pipeline, moved, place, count, links, kept)
    return path, load, link


@njit(cache=True)
def _begin(pipeline: Pipeline, home: Ints, member: Bools, swaps_with: Ints) -> tuple[Ints, Ints]:
    """Of each unit, the first place in the order that its moves change, and the device that all of it is on, else -1."""
    units = member.shape[0]
    first, whole = np.zeros(units, np.int64), np.full(units, -1)
    for unit in range(units):
        begun, alone = False, True
        for place, group in enumerate(pipeline.order):
            if not member[unit, group]:
                continue
            if not begun:
                begun, whole[unit] = True, home[group]
                # In an exchange others may come first.
                first[unit] = place if swaps_with[unit] < 0 else 0
            alone = alone and home[group] == whole[unit]
        if not alone:
            whole[unit] = -1
    return first, whole


@njit(cache=True)
def _through(pipeline: Pipeline, home: Ints) -> Floats:
    """Seconds of the longest chain of one microbatch through each group."""
    count, share = home.shape[0], 1.0 / pipeline.microbatches
    before, after = np.zeros(count), np.zeros(count)
    for backward in range(2):
        for place in range(count):
            group = pipeline.order[count - 1 - place if backward else place]
            own = pipeline.step_s[group, home[group]] * share
            for edge in range(pipeline.in_start[group], pipeline.in_start[group + 1]):
                source = pipeline.source[edge]
                seconds = pipeline.edge_messages[edge] * pipeline.latency_s[home[source], home[group]]
                seconds += pipeline.edge_bytes[edge] * pipeline.seconds_per_byte[home[source], home[group]]
                seconds *= share * (home[source] != home[group])
                if backward:
                    after[source] = max(after[source], after[group] + own + seconds)
                else:
                    before[group] = max(before[group], before[source] + seconds)
            if not backward:
                before[group] += own
    return before + after
