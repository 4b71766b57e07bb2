"""Bounds of a pipelined step: its critical path, its fullest device and its fullest link.

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
    now = bounds(pipeline, home, *scratch(pipeline))
    before, after = chains(pipeline, home)
    return with_estimate(pipeline, *(np.asarray(seconds) for seconds in now)), before + after


def with_estimate(pipeline: Pipeline, path: Floats, load: Floats, link: Floats) -> Bounds:
    """The bounds, and what they make of the step."""
    narrow = np.maximum(load, link)
    estimate = load if pipeline.steady else np.maximum(path + (1 - 1 / pipeline.microbatches) * narrow, narrow)
    return Bounds(path, load, link, estimate)


@njit(cache=True)
def scratch(pipeline: Pipeline) -> tuple[Floats, Floats, Floats]:
    """Room for a number of every group, of every device and of every pair of devices."""
    count, devices = pipeline.step_s.shape
    return np.zeros(count), np.zeros(devices), np.zeros((devices, devices))


@njit(cache=True, inline="always")
def transfer_s(pipeline: Pipeline, edge: int, there: Any, here: Any) -> Any:
    """Seconds of a step that an edge from a group on one device to a group on another takes."""
    if there == here:
        return 0.0
    latency, pace = pipeline.latency_s[there, here], pipeline.seconds_per_byte[there, here]
    return pipeline.edge_messages[edge] * latency + pipeline.edge_bytes[edge] * pace


@njit(cache=True)
def bounds(pipeline: Pipeline, home: Ints, done: Floats, loads: Floats, links: Floats) -> tuple[Any, Any, Any]:
    """Path, load and link with each group on its device; `links` is zero before and after."""
    loads[:] = 0.0
    share = 1.0 / pipeline.microbatches
    path = link = 0.0
    for group in pipeline.order:
        here = home[group]
        ready = 0.0
        for edge in range(pipeline.in_start[group], pipeline.in_start[group + 1]):
            there = home[pipeline.source[edge]]
            seconds = transfer_s(pipeline, edge, there, here)
            if there != here:
                low, high = min(here, there), max(here, there)
                links[low, high] += 0.5 * seconds
                link = max(link, links[low, high])
                if pipeline.steady:
                    loads[here] += seconds
                    loads[there] += seconds
            ready = max(ready, done[pipeline.source[edge]] + seconds * share)
        loads[here] += pipeline.step_s[group, here]
        done[group] = ready + pipeline.step_s[group, here] * share
        path = max(path, done[group])
    # Of many devices few pairs are in use: these alone are set back.
    for group in pipeline.order:
        for edge in range(pipeline.in_start[group], pipeline.in_start[group + 1]):
            here, there = home[group], home[pipeline.source[edge]]
            links[min(here, there), max(here, there)] = 0.0
    return path, loads.max(), link


@njit(cache=True)
def chains(pipeline: Pipeline, home: Ints) -> tuple[Floats, Floats]:
    """Seconds of the longest chain of one microbatch up to and with each group, and of the longest after it."""
    count, share = home.shape[0], 1.0 / pipeline.microbatches
    before, after = np.zeros(count), np.zeros(count)
    for backward in range(2):
        for place in range(count):
            group = pipeline.order[count - 1 - place if backward else place]
            own = pipeline.step_s[group, home[group]] * share
            for edge in range(pipeline.in_start[group], pipeline.in_start[group + 1]):
                source = pipeline.source[edge]
                seconds = transfer_s(pipeline, edge, home[source], home[group]) * share
                if backward:
                    after[source] = max(after[source], after[group] + own + seconds)
                else:
                    before[group] = max(before[group], before[source] + seconds)
            if not backward:
                before[group] += own
    return before, after
