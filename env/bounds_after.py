"""Bounds of a pipelined step after every move of every unit, from what each move leaves as it is."""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from .bounds import Bools, Bounds, Floats, Ints, Pipeline, bounds, chains, scratch, with_estimate


def bounds_after(pipeline: Pipeline, home: Ints, member: Bools, swaps_with: Ints) -> Bounds:
    """Bounds after each unit has moved to each device, `float64[u, d]` each.

    Args:
        pipeline: the groups.
        home: device of every group, `int64[n]`.
        member: groups in each unit, `bool[u, n]`.
        swaps_with: where the groups of the device that a unit goes to go in exchange, -1 if they stay, `int64[u]`.
    """
    return with_estimate(pipeline, *_after(pipeline, home, member, swaps_with))


class _Now(NamedTuple):
    """A placement, and what in it the moves of a unit leave as it is.

    Attributes:
        home: device of every group, `int64[n]`.
        place: of every group in the topological order, likewise.
        target: group that each edge leads to, `int64[e]`.
        before: the longest chain up to and with each group, `float64[n]`.
        onward: the longest chain from each group on, itself included, likewise.
        ended: the longest chain among the groups before each place of the order, `float64[n + 1]`.
        begun: the longest from any group at or after it on, likewise.
    """

    home: Ints
    place: Ints
    target: Ints
    before: Floats
    onward: Floats
    ended: Floats
    begun: Floats


@njit(cache=True)
def _now(pipeline: Pipeline, home: Ints) -> _Now:
    count, share = home.shape[0], 1.0 / pipeline.microbatches
    before, onward = chains(pipeline, home)
    place, target = np.empty(count, np.int64), np.empty(pipeline.source.shape[0], np.int64)
    for group in range(count):
        onward[group] += pipeline.step_s[group, home[group]] * share
        place[pipeline.order[group]] = group
        target[pipeline.in_start[group] : pipeline.in_start[group + 1]] = group
    ended, begun = np.zeros(count + 1), np.zeros(count + 1)
    for number in range(count):
        ended[number + 1] = max(ended[number], before[pipeline.order[number]])
        last = count - 1 - number
        begun[last] = max(begun[last + 1], onward[pipeline.order[last]])
    return _Now(home, place, target, before, onward, ended, begun)


class _Unit(NamedTuple):
    """A unit that is about to move, and what its moves leave as it is.

    Attributes:
        member: whether a group is in it, `bool[n]`.
        groups: the groups, `int64[k]`.
        first: place in the order of the first of them.
        last: of the last of them.
        touching: edges with an end in it, `int64[t]`.
        leaving: edges from the groups between its first and its last to those after them, `int64[l]`.
        loads: seconds of a step that the other groups, and the edges between them, take each device, `float64[d]`.
        link: seconds that those edges take the fullest pair of devices.
        path: the longest chain that passes none of the groups between its first and its last.
    """

    member: Bools
    groups: Ints
    first: Any
    last: Any
    touching: Ints
    leaving: Ints
    loads: Floats
    link: Any
    path: Any


@njit(cache=True)
def _after(pipeline: Pipeline, home: Ints, member: Bools, swaps_with: Ints) -> tuple[Floats, Floats, Floats]:
    units, devices = member.shape[0], pipeline.step_s.shape[1]
    path, load, link = np.empty((units, devices)), np.empty((units, devices)), np.empty((units, devices))
    then, loads, links = scratch(pipeline)
    kept, now, moved = np.zeros_like(links), _now(pipeline, home), home.copy()
    for row in range(units):
        if swaps_with[row] < 0:
            unit = _unit(pipeline, now, member[row], kept, links)
            _loads_and_links(pipeline, now, unit, loads, links, kept, load[row], link[row])
            _paths(pipeline, now, unit, then, path[row])
            _clear(pipeline, now, kept, links)
            continue
        for device in range(devices):
            for group in range(home.shape[0]):
                moved[group] = home[group]
                if member[row, group]:
                    moved[group] = device
                elif home[group] == device:
                    moved[group] = swaps_with[row]
            path[row, device], load[row, device], link[row, device] = bounds(pipeline, moved, then, loads, links)
    return path, load, link


# Below, fields are taken out of their tuples before loops: there each look at one would count references.


@njit(cache=True)
def _clear(pipeline: Pipeline, now: _Now, kept: Floats, links: Floats) -> None:
    """Make every pair of devices that edges take now zero."""
    home, sources, targets = now.home, pipeline.source, now.target
    for edge in range(targets.shape[0]):
        one, other = home[sources[edge]], home[targets[edge]]
        low, high = min(one, other), max(one, other)
        kept[low, high] = links[low, high] = 0.0


@njit(cache=True)
def _unit(pipeline: Pipeline, now: _Now, member: Bools, kept: Floats, links: Floats) -> _Unit:
    """What the moves of a unit leave as it is; of pairs of devices it goes into `kept` and `links`, which are zero before."""
    home, place, before, onward = now.home, now.place, now.before, now.onward
    sources, targets, messages, volume = pipeline.source, now.target, pipeline.edge_messages, pipeline.edge_bytes
    latency, pace, step_s, steady = pipeline.latency_s, pipeline.seconds_per_byte, pipeline.step_s, pipeline.steady
    share, loads, groups = 1.0 / pipeline.microbatches, np.zeros(pipeline.step_s.shape[1]), np.flatnonzero(member)
    first, last = place[groups[0]], place[groups[0]]
    for group in range(home.shape[0]):
        if member[group]:
            first, last = min(first, place[group]), max(last, place[group])
        else:
            loads[home[group]] += step_s[group, home[group]]
    touching, leaving = np.empty_like(targets), np.empty_like(targets)
    touched = left = 0
    link, path = 0.0, max(now.ended[first], now.begun[last + 1])
    for edge in range(targets.shape[0]):
        source, target = sources[edge], targets[edge]
        there, here = home[source], home[target]
        if place[source] >= first and place[source] <= last and place[target] > last:
            leaving[left] = edge
            left += 1
        if member[source] or member[target]:
            touching[touched] = edge
            touched += 1
            continue
        seconds = 0.0
        if there != here:
            seconds = messages[edge] * latency[there, here] + volume[edge] * pace[there, here]
            low, high = min(here, there), max(here, there)
            kept[low, high] += 0.5 * seconds
            links[low, high] = kept[low, high]
            link = max(link, kept[low, high])
            if steady:
                loads[here] += seconds
                loads[there] += seconds
        if place[source] < first and place[target] > last:
            path = max(path, before[source] + seconds * share + onward[target])
    return _Unit(member, groups, first, last, touching[:touched], leaving[:left], loads, link, path)


@njit(cache=True)
def _loads_and_links(
    pipeline: Pipeline, now: _Now, unit: _Unit, loads: Floats, links: Floats, kept: Floats, load: Floats, link: Floats
) -> None:
    """Seconds of the fullest device and the fullest pair once a unit is on each device, into `load` and `link`.

    `links` is `kept` before and after.
    """
    home, sources, targets, member, touching = now.home, pipeline.source, now.target, unit.member, unit.touching
    messages, volume, steady, groups = pipeline.edge_messages, pipeline.edge_bytes, pipeline.steady, unit.groups
    latency, pace, step_s, others = pipeline.latency_s, pipeline.seconds_per_byte, pipeline.step_s, unit.loads
    for device in range(loads.shape[0]):
        fullest = unit.link
        for number in range(loads.shape[0]):
            loads[number] = others[number]
        for number in range(groups.shape[0]):
            loads[device] += step_s[groups[number], device]
        for number in range(touching.shape[0]):
            edge = touching[number]
            there = device if member[sources[edge]] else home[sources[edge]]
            here = device if member[targets[edge]] else home[targets[edge]]
            if there != here:
                seconds = messages[edge] * latency[there, here] + volume[edge] * pace[there, here]
                low, high = min(here, there), max(here, there)
                links[low, high] += 0.5 * seconds
                fullest = max(fullest, links[low, high])
                if steady:
                    loads[here] += seconds
                    loads[there] += seconds
        for number in range(touching.shape[0]):
            edge = touching[number]
            there = device if member[sources[edge]] else home[sources[edge]]
            here = device if member[targets[edge]] else home[targets[edge]]
            low, high = min(here, there), max(here, there)
            links[low, high] = kept[low, high]
        load[device], link[device] = loads.max(), fullest


@njit(cache=True)
def _paths(pipeline: Pipeline, now: _Now, unit: _Unit, then: Floats, path: Floats) -> None:
    """The longest chain once a unit is on each device: only groups between its first and its last are gone through."""
    home, sources, targets, member, place = now.home, pipeline.source, now.target, unit.member, now.place
    order, in_start, before, onward, leaving = pipeline.order, pipeline.in_start, now.before, now.onward, unit.leaving
    messages, volume, first, last = pipeline.edge_messages, pipeline.edge_bytes, unit.first, unit.last
    latency, pace, step_s, share = (
        pipeline.latency_s,
        pipeline.seconds_per_byte,
        pipeline.step_s,
        1 / pipeline.microbatches,
    )
    for device in range(path.shape[0]):
        longest = unit.path
        for number in range(first, last + 1):
            group = order[number]
            here = device if member[group] else home[group]
            ready = 0.0
            for edge in range(in_start[group], in_start[group + 1]):
                source = sources[edge]
                there = device if member[source] else home[source]
                arrives = then[source] if place[source] >= first else before[source]
                if there != here:
                    arrives += (messages[edge] * latency[there, here] + volume[edge] * pace[there, here]) * share
                ready = max(ready, arrives)
            then[group] = ready + step_s[group, here] * share
            longest = max(longest, then[group])
        for number in range(leaving.shape[0]):
            edge = leaving[number]
            there = device if member[sources[edge]] else home[sources[edge]]
            here = home[targets[edge]]
            arrives = then[sources[edge]]
            if there != here:
                arrives += (messages[edge] * latency[there, here] + volume[edge] * pace[there, here]) * share
            longest = max(longest, arrives + onward[targets[edge]])
        path[device] = longest
