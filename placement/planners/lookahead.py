"""`price_moves`: what single moves from one placement lead to, priced exactly and compiled."""

import numpy as np
from numba import njit

from ..clock import SimulatedClock, price
from ..stages import Adjacency, Bools, Floats, Ints


def price_moves(
    clock: SimulatedClock, group_of: Ints, devices: Ints, member: Bools, targets: Ints
) -> tuple[Floats, Floats]:
    """Step time in seconds and bytes of overflow after each of `k` moves, each from `devices`, `float64[k]`.

    Args:
        clock: prices step times; its objective must be the step time itself.
        group_of: group of every op, `int64[ops]`.
        devices: the placement, `int64[ops]`.
        member: groups that move, `bool[k, n]`.
        targets: where to, `int64[k]`.
    """
    return _price_moves(group_of, np.asarray(devices, np.int64), member, targets, *clock.pricing)


@njit(cache=True)
def _price_moves(
    group_of: Ints, devices: Ints, member: Bools, targets: Ints, edges: Adjacency, requires_grad: Bools,
    output_bytes: Floats, num_devices: int, costs, run_ahead: int,
) -> tuple[Floats, Floats]:  # fmt: skip
    seconds, overflow = np.empty(targets.shape[0]), np.empty(targets.shape[0])
    moved = devices.copy()
    for move in range(targets.shape[0]):
        for op in range(devices.shape[0]):
            moved[op] = targets[move] if member[move, group_of[op]] else devices[op]
        seconds[move], overflow[move] = price(moved, edges, requires_grad, output_bytes, num_devices, costs, run_ahead)
    return seconds, overflow
