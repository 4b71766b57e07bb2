"""`anneal_units`: compiled simulated annealing whose moves are units of groups and ends of runs."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from ..clock import SimulatedClock, price
from ..coarsen import Groups
from ..move_cost import MoveCost, free_of_charge, move_seconds
from ..plain_arrays import plain
from ..stages import Adjacency, Bools, Floats, Ints

# Charged, as a logarithm of the step time, for a placement that overflows memory, and as much again by the share of the
# smallest memory that it overflows by.
OVERFLOW_CHARGE = 0.5


class Annealed(NamedTuple):
    """What an annealing found.

    Attributes:
        devices: the best op-to-device map, `int64[ops]`.
        step_time_s: its simulated step time, without what moving there costs.
        overflow_bytes: what does not fit on its tightest device.
        evaluations: distinct placements priced.
        trail: maps that it was at after the given numbers of evaluations, `int64[s, ops]`.
    """

    devices: Ints
    step_time_s: float
    overflow_bytes: float
    evaluations: int
    trail: Ints


def anneal_units(
    clock: SimulatedClock,
    groups: Groups,
    start: Ints,
    *,
    evaluations: int,
    seed: int = 0,
    hot: float = 0.05,
    cold: float = 0.001,
    runs: float = 0.4,
    spans: float = 0.0,
    singles: bool = False,
    snapshots: Sequence[int] = (),
    move_cost: MoveCost | None = None,
    avoid: Sequence[Ints] = (),
) -> Annealed:
    """Anneal from `start`, pricing at most `evaluations` distinct placements (the start is one of them).

    A move takes a random unit of `groups` to a random device, or with probability `runs` one end of a run (consecutive
    groups on one device), cut at a random group, or else with probability `spans` consecutive groups from a random one on,
    up to half of all. The temperature, a relative change of the step time, falls geometrically
    from `hot` to `cold`. A placement that was priced before costs nothing. Of two placements the one that overflows memory by
    less is better, then the faster one.

    Args:
        clock: prices placements; not a `WorkloadClock`, which has no compiled price.
        groups: of the clock's graph.
        start: where to begin.
        evaluations: distinct placements to price.
        seed: the same seed gives the same answer.
        hot: temperature at the start.
        cold: temperature at the end.
        runs: share of moves that are ends of runs.
        spans: share of the other moves that are consecutive groups.
        singles: whether units are the single groups alone.
        snapshots: ascending numbers of evaluations after which the map is kept in the trail.
        move_cost: what moving costs, added to the step time; nothing by default.
        avoid: maps that are not to be the answer, if there is any other.
    """
    chosen = [unit for unit in groups.units if not singles or len(unit) == 1]
    unit_start = np.concatenate([[0], np.cumsum([len(unit) for unit in chosen])]).astype(np.int64)
    order = np.argsort(groups.group_of, kind="stable").astype(np.int64)
    op_start = np.searchsorted(groups.group_of[order], np.arange(groups.num_groups + 1)).astype(np.int64)
    moves = _Moves(unit_start, np.concatenate(chosen).astype(np.int64), op_start, order, float(runs), float(spans))
    kept = np.array([*snapshots, np.iinfo(np.int64).max], np.int64)
    avoided = np.array([_hash(np.asarray(devices, np.int64)) for devices in avoid], np.int64)
    return Annealed(
        *_anneal(
            np.array(start, np.int64), moves, *clock.pricing, float(clock.topology.memory_bytes.min()), evaluations,
            float(hot), float(cold), seed, kept, plain(move_cost or free_of_charge(start)), avoided,
        )
    )  # fmt: skip


class _Moves(NamedTuple):
    unit_start: Ints
    unit_groups: Ints
    op_start: Ints
    ops: Ints
    runs: float
    spans: float


@njit(cache=True)
def _anneal(
    start: Ints, moves: _Moves, edges: Adjacency, requires_grad: Bools, output_bytes: Floats, num_devices: int,
    costs: Any, run_ahead: int, loads: Any, smallest: float, evaluations: int, hot: float, cold: float, seed: int,
    snapshots: Ints, move_cost: MoveCost, avoid: Ints,
) -> tuple[Ints, float, float, int, Ints]:  # fmt: skip
    np.random.seed(seed)  # noqa: NPY002  (numba's own generator)
    count = moves.op_start.shape[0] - 1
    current, home = start.copy(), start[moves.ops[moves.op_start[:-1]]]
    tried, best = current.copy(), current.copy()
    size = 4
    while size < 4 * evaluations:
        size *= 2
    keys, energies = np.zeros(size, np.int64), np.zeros(size)
    seconds, overflow = price(current, edges, requires_grad, output_bytes, num_devices, costs, run_ahead, loads)
    now = _energy(seconds + move_seconds(current, move_cost), overflow, smallest)
    slot = _slot(keys, _hash(current))
    keys[slot], energies[slot] = _hash(current), now
    best_seconds, best_overflow, lowest = seconds, overflow, now
    if (avoid == keys[slot]).any():
        best_overflow = lowest = np.inf
    trail = np.empty((snapshots.shape[0] - 1, start.shape[0]), np.int64)
    used, kept, idle = 1, 0, 0
    marked = np.empty(count, np.bool_)
    while used < evaluations and idle < 20 * evaluations:
        while used >= snapshots[kept]:
            trail[kept] = current
            kept += 1
        idle += 1
        _draw(moves, home, marked)
        target = np.random.randint(num_devices)  # noqa: NPY002
        tried[:] = current
        if not _move(moves, marked, target, tried):
            continue
        key = _hash(tried)
        slot = _slot(keys, key)
        if keys[slot] == 0:
            seconds, overflow = price(tried, edges, requires_grad, output_bytes, num_devices, costs, run_ahead, loads)
            keys[slot] = key
            energies[slot] = _energy(seconds + move_seconds(tried, move_cost), overflow, smallest)
            used += 1
            better = overflow < best_overflow or (overflow == best_overflow and energies[slot] < lowest)
            if better and not (avoid == key).any():
                best_seconds, best_overflow, lowest = seconds, overflow, energies[slot]
                best[:] = tried
        temperature = hot * (cold / hot) ** (used / evaluations)
        if energies[slot] - now <= -temperature * np.log(np.random.random()):  # noqa: NPY002
            now = energies[slot]
            current, tried = tried, current
            for group in range(count):
                if marked[group]:
                    home[group] = target
    while kept < trail.shape[0]:
        trail[kept] = current
        kept += 1
    return best, best_seconds, best_overflow, used, trail


@njit(cache=True)
def _move(moves: _Moves, marked: Bools, target: int, devices: Ints) -> bool:
    """Put the marked groups on a device; returns whether any op was elsewhere."""
    changed = False
    for group in range(marked.shape[0]):
        if marked[group]:
            for place in range(moves.op_start[group], moves.op_start[group + 1]):
                changed |= devices[moves.ops[place]] != target
                devices[moves.ops[place]] = target
    return changed


@njit(cache=True)
def _draw(moves: _Moves, home: Ints, marked: Bools) -> None:
    """Mark the groups of a random move."""
    marked[:] = False
    count = home.shape[0]
    if np.random.random() < moves.runs:  # noqa: NPY002
        group = np.random.randint(count)  # noqa: NPY002
        step = 1 if np.random.random() < 0.5 else -1  # noqa: NPY002
        place = group
        while 0 <= place < count and home[place] == home[group]:
            marked[place] = True
            place += step
    elif np.random.random() < moves.spans:  # noqa: NPY002
        # As many short ones as long ones.
        length = max(1, int((0.5 * count) ** np.random.random()))  # noqa: NPY002
        first = np.random.randint(count)  # noqa: NPY002
        marked[first : first + length] = True
    else:
        unit = np.random.randint(moves.unit_start.shape[0] - 1)  # noqa: NPY002
        for place in range(moves.unit_start[unit], moves.unit_start[unit + 1]):
            marked[moves.unit_groups[place]] = True


@njit(cache=True)
def _energy(seconds: float, overflow: float, smallest: float) -> float:
    charge = OVERFLOW_CHARGE * (1.0 + min(1.0, overflow / smallest)) if overflow > 0 else 0.0
    return np.log(seconds) + charge


@njit(cache=True)
def _hash(devices: Ints) -> Any:
    """A number other than 0 for every map, FNV-1a with a last mix."""
    key = np.int64(-3750763034362895579)
    for device in devices:
        key = (key ^ (device + 1)) * np.int64(1099511628211)
    key ^= key >> np.int64(29)
    return key if key != 0 else np.int64(1)


@njit(cache=True)
def _slot(keys: Ints, key: int) -> Any:
    """Where a key stands in an open hash table, or would."""
    slot = (key * np.int64(-7046029254386353131) >> np.int64(20)) & (keys.shape[0] - 1)
    while keys[slot] != 0 and keys[slot] != key:
        slot = (slot + 1) & (keys.shape[0] - 1)
    return slot
