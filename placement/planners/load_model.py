"""`LoadModel`: a `LoadProblem` in whole numbers, as constraints over one Boolean for each colocation group and device."""

from typing import Any, NamedTuple

import numpy as np

from ..errors import SegueError
from .load_problem import LoadProblem
from .plan import Devices, Floats, leaders

# Seconds are rounded down to multiples of this share of the least load imaginable, so bounds hold and lose next to nothing.
RESOLUTION = 2.0**-30
# Single costs are cut off here, far above any load that is worth considering, so that no sum leaves 64 bits.
LARGEST_COST, LARGEST_LOAD = 2.0**44, 2**60
# Bytes that are no whole numbers are counted in such parts of them all.
LARGEST_BYTES = 2.0**50


class Value(NamedTuple):
    """What one group sends: to the same reader groups, in whole units (see `LoadProblem` for the costs)."""

    group: int
    readers: tuple[int, ...]
    pair: Devices | None
    host: Devices | None


class LoadModel:
    """The constraint model of a problem.

    Args:
        problem: what is placed.

    Attributes:
        model: OR-Tools' `CpModel`; it minimises the largest load in units.
        unit_s: seconds of one unit.

    Raises:
        SegueError: if OR-Tools is not installed, or no device can run a colocation group.
    """

    def __init__(self, problem: LoadProblem):
        self.problem = problem
        self.group = np.unique(leaders(problem.graph), return_inverse=True)[1]
        count, num_devices = int(self.group.max()) + 1, len(problem.capacity_bytes)
        seconds = np.zeros((count, num_devices))
        np.add.at(seconds, self.group, problem.seconds)
        for group in np.flatnonzero(np.isinf(seconds).all(axis=1))[:1]:
            op = int(np.argmax(self.group == group))
            name = problem.graph.names[op]
            raise SegueError(f"graph {problem.graph.name}: no device can run {name} and what is colocated with it")
        self.unit_s = _unit(seconds)
        self.model: Any = cp_model().CpModel()
        self.on: list[list[Any]] = [
            [self.model.new_bool_var(f"{group} on {device}") for device in range(num_devices)] for group in range(count)
        ]
        self.terms: list[list[Any]] = [[] for _ in range(num_devices)]
        self._place(seconds)
        self._hold()
        self._be_present()
        for value in _values(problem, self.group, self.unit_s):
            self._send(value)
        self.load = self.model.new_int_var(0, LARGEST_LOAD, "load")
        for terms in self.terms:
            self.model.add(sum(terms) <= self.load)
        self.model.minimize(self.load)

    def devices(self, solver: Any) -> Devices:
        """The op-to-device map of a solution; `solver` is anything with `boolean_value`."""
        chosen = np.array([[solver.boolean_value(on) for on in row] for row in self.on])
        return np.argmax(chosen, axis=1)[self.group]

    def hint(self, devices: Devices) -> None:
        """Let the search begin at a placement."""
        for group, row in enumerate(self.on):
            own = devices[np.argmax(self.group == group)]
            for device, on in enumerate(row):
                self.model.add_hint(on, int(device == own))

    def _units(self, seconds: Floats) -> Devices:
        return _whole(seconds, self.unit_s)

    def _place(self, seconds: Floats) -> None:
        """Every group on one device that can run it, which is charged for it."""
        units = self._units(np.where(np.isfinite(seconds), seconds, 0.0))
        for row, possible, cost in zip(self.on, np.isfinite(seconds), units.tolist(), strict=True):
            self.model.add_exactly_one(row)
            for device, on in enumerate(row):
                if not possible[device]:
                    self.model.add(on == 0)
                elif cost[device]:
                    self.terms[device].append(cost[device] * on)

    def _hold(self) -> None:
        """No device holds more than it can; fractions of bytes are rounded down."""
        held = np.bincount(self.group, self.problem.held_bytes)
        scale = 1.0 if (held % 1 == 0).all() else 2.0 ** np.floor(np.log2(LARGEST_BYTES / held.sum()))
        sizes = np.floor(held * scale).astype(np.int64).tolist()
        for device, capacity in enumerate(self.problem.capacity_bytes):
            if held.sum() > capacity:
                total = sum(size * row[device] for size, row in zip(sizes, self.on, strict=True) if size)
                self.model.add(total <= int(np.floor(capacity * scale)))

    def _be_present(self) -> None:
        """A device with any of a set's groups pays for being present."""
        for ops, seconds in self.problem.present_s:
            groups = np.unique(self.group[ops]).tolist()
            for device, cost in enumerate(self._units(seconds).tolist()):
                if cost and groups:
                    present = self.model.new_bool_var("")
                    for group in groups:
                        self.model.add_implication(self.on[group][device], present)
                    self.terms[device].append(cost * present)

    def _send(self, value: Value) -> None:
        """Charge a value's ends. Inequalities are enough: the load is minimised, so nothing is set that need not be."""
        home = self.on[value.group]
        readers = [self.on[group] for group in value.readers]
        if value.host is not None:
            for device, cost in enumerate(value.host.tolist()):
                if cost:
                    received, sent = self.model.new_bool_var(""), self.model.new_bool_var("")
                    for reader in readers:
                        self.model.add_bool_or(received, ~reader[device], home[device])
                        self.model.add_bool_or(sent, reader[device], ~home[device])
                    self.terms[device] += [cost * received, cost * sent]
        if value.pair is not None:
            self._send_pairs(value.pair, home, readers)

    def _send_pairs(self, cost: Devices, home: list[Any], readers: list[list[Any]]) -> None:
        count = len(home)
        crosses: Any = [[self.model.new_bool_var("") if a != b else None for b in range(count)] for a in range(count)]
        for a in range(count):
            for b in range(count):
                if a == b:
                    continue
                for reader in readers:
                    self.model.add_bool_or(crosses[a][b], ~home[a], ~reader[b])
                self.terms[a].append(int(cost[a, b]) * crosses[a][b])
                self.terms[b].append(int(cost[a, b]) * crosses[a][b])
            # These follow from the others; the linear relaxation is the stronger for them.
            leaving = [crosses[a][b] for b in range(count) if b != a]
            coming = [crosses[b][a] for b in range(count) if b != a]
            for reader in readers:
                self.model.add_bool_or(*leaving, ~home[a], reader[a])
                self.model.add_bool_or(*coming, home[a], ~reader[a])


def cp_model() -> Any:
    """OR-Tools' module.

    Raises:
        SegueError: if it is not installed.
    """
    try:
        from ortools.sat.python import cp_model as module
    except ImportError as error:
        raise SegueError("planner 'cp-sat' needs OR-Tools: pip install 'segue[planners]'") from error
    return module


def _unit(seconds: Floats) -> float:
    """A share of the least load imaginable: the longest group, or all of them evenly spread over the fastest devices."""
    fastest = seconds.min(axis=1)
    return max(float(fastest.max()), float(fastest.sum()) / seconds.shape[1], 1e-300) * RESOLUTION


def _whole(seconds: Floats, unit_s: float) -> Devices:
    return np.minimum(np.floor(seconds / unit_s), LARGEST_COST).astype(np.int64)


def _values(problem: LoadProblem, group: Devices, unit_s: float) -> list[Value]:
    """What the groups send; values of one group with the same readers are one."""
    readers: list[set[int]] = [set() for _ in group]
    for source, target in problem.graph.edges.tolist():
        if group[source] != group[target]:
            readers[source].add(int(group[target]))
    merged: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for op, to in enumerate(readers):
        if to:
            merged.setdefault((int(group[op]), tuple(sorted(to))), []).append(op)
    values = []
    for (home, to), ops in merged.items():
        costs = [
            None if each is None else _whole(each[ops].sum(axis=0), unit_s) for each in (problem.pair_s, problem.host_s)
        ]
        if any(cost is not None and cost.any() for cost in costs):
            values.append(Value(home, to, *costs))
    return values
