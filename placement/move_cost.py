"""`MoveCost`: what it costs to leave the placement that runs, spread over the steps that are left to gain from it."""

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class MoveCost(NamedTuple):
    """Seconds of every step until the horizon that a move takes.

    Attributes:
        origin: device of every op now, `int64[n]`.
        seconds: seconds that moving each op takes, over the number of steps, `float64[n]`.
        pause_s: seconds that any move takes besides, over the number of steps.
    """

    origin: Ints
    seconds: Floats
    pause_s: float

    def of(self, devices: Ints) -> float:
        """Seconds a step for a move to `devices`; 0 for `origin` itself."""
        return float(move_seconds(devices, self))


def free_of_charge(origin: Ints) -> MoveCost:
    """Moving costs nothing."""
    return MoveCost(np.asarray(origin, np.int64), np.zeros(len(origin)), 0.0)


@njit(cache=True)
def move_seconds(devices: Ints, cost: MoveCost) -> float:
    """`MoveCost.of`, compiled."""
    total, moved = 0.0, False
    for op in range(devices.shape[0]):
        if devices[op] != cost.origin[op]:
            moved = True
            total += cost.seconds[op]
    return total + cost.pause_s if moved else 0.0
