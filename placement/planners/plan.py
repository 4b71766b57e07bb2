"""`Plan`: what a planner returns, and `Evaluator`: how planners ask the clock."""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..clock import SimulatedClock
from ..errors import SegueError
from ..graph import Graph

Devices = NDArray[np.int64]
Floats = NDArray[np.float64]

# Constructive planners estimate memory (they do not see when activations live); what overflows is tried again with less.
MEMORY_SHARES = (1.0, 0.9, 0.75, 0.6, 0.5, np.inf)


@dataclass(frozen=True, eq=False)
class Plan:
    """An op-to-device map and what it cost to find.

    Attributes:
        planner: name that `plan` was called with.
        devices: device of every op, `int64[n]`, no colocation group split.
        value_s: simulated seconds of one step, or what else the clock says it minimises.
        overflow_bytes: bytes by which the tightest device's memory is exceeded; 0 if everything fits.
        evaluations: placements priced on the clock.
        planning_s: wall-clock seconds spent.
        bound: what the planner proved that no placement that fits is below, in the unit of `value_s`; None if nothing.
    """

    planner: str
    devices: Devices
    value_s: float
    overflow_bytes: float
    evaluations: int
    planning_s: float
    bound: float | None = None

    @property
    def feasible(self) -> bool:
        """Whether everything fits into memory."""
        return self.overflow_bytes == 0


class Evaluator:
    """Prices placements on a clock, counts them, and keeps the best: the least overflow, then the shortest step.

    Args:
        clock: what prices.
        evaluations: how many placements may be priced.
        budget_s: wall-clock seconds that the planner may take, where it can keep to them.

    Attributes:
        clock: what prices.
        used: placements priced so far.
        best: `(overflow_bytes, value_s)` of the best so far, infinite before the first.
        devices: the best placement so far.
        bound: what the planner proved that no placement that fits is below; None if it proved nothing.
    """

    def __init__(self, clock: SimulatedClock, evaluations: int, budget_s: float | None = None):
        if evaluations < 1:
            raise SegueError(f"evaluations must be >= 1, got {evaluations}")
        self.clock = clock
        self.used = 0
        self.best = (float("inf"), float("inf"))
        self.devices: Devices = np.zeros(clock.graph.num_ops, np.int64)
        self.bound: float | None = None
        self._limit = evaluations
        self._deadline = None if budget_s is None else time.perf_counter() + budget_s
        self._leaders = leaders(clock.graph)

    @property
    def left(self) -> int:
        """Placements that may still be priced."""
        return self._limit - self.used

    @property
    def seconds_left(self) -> float | None:
        """Wall-clock seconds that are left of the budget, at least 0; None without a budget."""
        return None if self._deadline is None else max(0.0, self._deadline - time.perf_counter())

    def __call__(self, devices: Devices) -> tuple[float, float]:
        """`(overflow_bytes, value_s)` of a map; each colocation group follows its first op, as in `colocate`."""
        devices = np.ascontiguousarray(devices[self._leaders], np.int64)
        value, overflow = self.clock.evaluate(devices)
        self.used += 1
        if (overflow, value) < self.best:
            self.best, self.devices = (overflow, value), devices
        return overflow, value


def leaders(graph: Graph) -> Devices:
    """For every op the first op of its colocation group (itself where it is free), `int64[n]`."""
    _, first, inverse = np.unique(graph.colocation, return_index=True, return_inverse=True)
    return np.where(graph.colocation >= 0, first[inverse], np.arange(graph.num_ops))


def at_leaders(values: Floats, graph: Graph) -> Floats:
    """Costs of whole colocation groups, `[n, ...]`: the sum at the first op of each group, 0 at the others."""
    if (graph.colocation < 0).all():
        return np.asarray(values, float)
    result = np.zeros_like(values, dtype=float)
    np.add.at(result, leaders(graph), values)
    return result
