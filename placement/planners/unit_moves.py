"""Compiled moves of units between devices, with the loads kept up to date edge by edge."""

from typing import NamedTuple

import numpy as np

from ..compiled import hot
from ..workload import Floats, Flow, Ints, Workload
from .units import Units

# Shares of the kinds of moves; what is left over grows a connected piece.
SINGLE, SWAP, RUN = 0.4, 0.15, 0.2
BUSIEST, NEAR = 0.5, 0.75
TRIES = 12


class State(NamedTuple):
    """A placement and what it costs, changed in place by `move`.

    Attributes:
        devices: device of every node, `int64[n]`.
        unit_device: device of every unit, `int64[u]`.
        within: how many of each node's consumers are on each device, `int64[n, d]`.
        loads: milliseconds of each device, `float64[d]`.
        held: bytes on each accelerator, 0 for the CPUs, `float64[d]`.
        rng: the state of the random numbers, `uint64[1]`.
    """

    devices: Ints
    unit_device: Ints
    within: Ints
    loads: Floats
    held: Floats
    rng: np.ndarray


class Draft(NamedTuple):
    """A proposed move, and room to find it: the units, where each goes, where each was, and when each was looked at."""

    units: Ints
    targets: Ints
    origins: Ints
    stamp: Ints
    clock: Ints


def make_state(workload: Workload, units: Units, seed: int) -> State:
    """Everything on the CPUs."""
    num_devices = workload.accelerators + 1
    flow = workload.flow
    within = np.zeros((workload.num_nodes, num_devices), np.int64)
    within[:, 0] = np.diff(flow.out_start)
    loads = np.zeros(num_devices)
    loads[0] = workload.cpu_ms.sum()
    return State(
        devices=np.zeros(workload.num_nodes, np.int64),
        unit_device=np.zeros(len(units.free), np.int64),
        within=within,
        loads=loads,
        held=np.zeros(num_devices),
        rng=np.array([seed], np.uint64),
    )


def make_draft(units: Units) -> Draft:
    """Room for the moves of these units."""
    count = len(units.free)
    room = [np.zeros(count, np.int64) for _ in range(4)]
    return Draft(room[0], room[1], room[2], room[3], np.zeros(1, np.int64))


@hot
def uniform(rng: np.ndarray) -> float:
    """The next random number in [0, 1): splitmix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    rng[0] += np.uint64(0x9E3779B97F4A7C15)
    mixed = rng[0]
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed = mixed ^ (mixed >> np.uint64(31))
    return np.float64(mixed >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@hot
def move(flow: Flow, units: Units, state: State, unit: int, target: int) -> None:
    """Put a unit on a device, in time proportional to its edges."""
    for member in range(units.start[unit], units.start[unit + 1]):
        _move_node(flow, state, units.members[member], target)
    state.unit_device[unit] = target


@hot
def _move_node(flow: Flow, state: State, node: int, target: int) -> None:
    devices, within, loads = state.devices, state.within, state.loads
    origin = devices[node]
    if origin == target:
        return
    cost, consumers = flow.cost_ms[node], flow.out_start[node + 1] - flow.out_start[node]
    if origin == 0:
        loads[0] -= flow.cpu_ms[node]
    else:
        loads[origin] -= flow.accelerator_ms[node]
        state.held[origin] -= flow.size_bytes[node]
        if within[node, origin] < consumers:
            loads[origin] -= cost
        if within[node, origin] > 0:
            loads[origin] += cost
    if target == 0:
        loads[0] += flow.cpu_ms[node]
    else:
        loads[target] += flow.accelerator_ms[node]
        state.held[target] += flow.size_bytes[node]
        if within[node, target] < consumers:
            loads[target] += cost
        if within[node, target] > 0:
            loads[target] -= cost
    devices[node] = target
    for edge in range(flow.in_start[node], flow.in_start[node + 1]):
        producer = flow.producers[edge]
        cost, consumers = flow.cost_ms[producer], flow.out_start[producer + 1] - flow.out_start[producer]
        at = devices[producer]
        was_sent = within[producer, at] < consumers
        within[producer, origin] -= 1
        within[producer, target] += 1
        if at != 0 and was_sent != (within[producer, at] < consumers):
            loads[at] += -cost if was_sent else cost
        if origin != 0 and origin != at and within[producer, origin] == 0:
            loads[origin] -= cost
        if target != 0 and target != at and within[producer, target] == 1:
            loads[target] += cost


@hot
def propose(units: Units, state: State, draft: Draft) -> int:
    """Draw a move into `draft`; returns how many units it moves (0: nothing came of the draw).

    A unit (half of the time one of the busiest device) goes to another device, mostly one that a neighbour is on: alone, in
    exchange for another unit, with those beside it in the order, or with a connected piece of its device.
    """
    count, num_devices = units.free.shape[0], state.loads.shape[0]
    rng, device = state.rng, state.unit_device
    unit = int(uniform(rng) * count)
    if uniform(rng) < BUSIEST:
        busiest = np.argmax(state.loads)
        for _ in range(TRIES):
            if device[unit] == busiest:
                break
            unit = int(uniform(rng) * count)
    origin = device[unit]
    target = int(uniform(rng) * num_devices)
    near = units.near_start[unit + 1] - units.near_start[unit]
    if near > 0 and uniform(rng) < NEAR:
        for _ in range(4):
            target = device[units.near[units.near_start[unit] + int(uniform(rng) * near)]]
            if target != origin:
                break
    if target == origin or not units.free[unit]:
        return 0
    draft.units[0] = unit
    draft.targets[0] = target
    kind = uniform(rng)
    if kind < SINGLE:
        return 1
    if kind < SINGLE + SWAP:
        other = int(uniform(rng) * count)
        for _ in range(TRIES):
            if device[other] == target:
                break
            other = int(uniform(rng) * count)
        if device[other] == origin or not units.free[other]:
            return 1
        draft.targets[0] = device[other]
        draft.units[1] = other
        draft.targets[1] = origin
        return 2
    most = max(2, int(2.0 ** (uniform(rng) * np.log2(count))))
    if kind < SINGLE + SWAP + RUN:
        return _run(units, state, draft, min(most, count))
    return _grow(units, state, draft, min(most, count), 0.5 + 0.5 * uniform(rng))


@hot
def _run(units: Units, state: State, draft: Draft, most: int) -> int:
    """Add the units beside the first one in the order that share its device, on one side of it."""
    unit, target = draft.units[0], draft.targets[0]
    origin, size = state.unit_device[unit], 1
    step = 1 if uniform(state.rng) < 0.5 else -1
    other = unit + step
    while size < most and 0 <= other < units.free.shape[0]:
        if units.free[other] and state.unit_device[other] == origin:
            draft.units[size] = other
            draft.targets[size] = target
            size += 1
        elif uniform(state.rng) < 0.1:
            break
        other += step
    return size


@hot
def _grow(units: Units, state: State, draft: Draft, most: int, chance: float) -> int:
    """Add units of the same device that are connected to the first one, each with a chance."""
    target, origin = draft.targets[0], state.unit_device[draft.units[0]]
    draft.clock[0] += 1
    now, head, size = draft.clock[0], 0, 1
    draft.stamp[draft.units[0]] = now
    while head < size and size < most:
        unit = draft.units[head]
        head += 1
        for edge in range(units.near_start[unit], units.near_start[unit + 1]):
            other = units.near[edge]
            if size == most or draft.stamp[other] == now or state.unit_device[other] != origin or not units.free[other]:
                continue
            draft.stamp[other] = now
            if uniform(state.rng) < chance:
                draft.units[size] = other
                draft.targets[size] = target
                size += 1
    return size
