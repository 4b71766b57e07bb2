"""`search`: simulated annealing of a `Workload`'s placement, for either objective, within a time or a number of tries."""

import time
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import numpy as np

from ..compiled import hot
from ..errors import SegueError
from ..objectives import OBJECTIVES, ROUNDING, Score, add_loads, last_finish, latency_room
from ..workload import CPU, Floats, Flow, Ints, Workload
from .unit_moves import Draft, State, make_draft, make_state, move, propose, uniform
from .units import Units, cut, make_units

# A round anneals from a start to the end; rounds grow so that short and long budgets are both spent well.
ROUND, GROWTH, LONGEST = 200_000, 1.5, 4_000_000
# Nodes times tries between two looks at the clock.
CHUNK = 5_000_000
ORDERS = 8
HOTTEST, COLDEST = 0.01, 1e-5
# The energy of max-load is the loads' norm of order 2 ** 5: near the largest load, yet every load counts.
DOUBLINGS = 5
OVERFLOW = 2.0
TINY = 1e-300


class _Rules(NamedTuple):
    """What is minimised, and what is allowed."""

    latency: bool
    accelerator_bytes: float
    has_cpu: bool


class _Work(NamedTuple):
    """A draft of a move, and `latency_room`'s arrays."""

    draft: Draft
    missing: Ints
    start: Floats
    queue: Ints
    first: Ints
    following: Ints


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found.

    Attributes:
        devices: device of every node, 0 for the CPUs, `int64[n]`.
        score: its value in milliseconds, and why it is not allowed where nothing allowed was found.
        evaluations: placements priced.
        planning_s: wall-clock seconds, without those of compiling the search on its first use.
    """

    devices: Ints
    score: Score
    evaluations: int
    planning_s: float


def search(
    workload: Workload,
    objective: str,
    *,
    seed: int = 0,
    budget_s: float | None = None,
    evaluations: int | None = None,
    start: Ints | None = None,
) -> Found:
    """Place a workload by simulated annealing from cuts of several topological orders.

    The tries are the same for the same seed; a limit only ends them, so the result depends on the seed and the number of
    evaluations alone.

    Args:
        workload: what is placed.
        objective: `max-load` or `latency`.
        seed: of every random choice.
        budget_s: wall-clock seconds to spend.
        evaluations: placements to price; at least one of the two limits is needed.
        start: device of every node in a placement that is known already; the answer is no worse.

    Returns:
        The best placement found, allowed ones first.

    Raises:
        SegueError: if the objective is unknown, or a limit is missing or not positive.
    """
    if objective not in OBJECTIVES:
        raise SegueError(f"objective {objective!r}: no such objective; known: {', '.join(OBJECTIVES)}")
    for name, limit in (("budget", budget_s), ("evaluations", evaluations)):
        if limit is not None and not limit > 0:
            raise SegueError(f"{name} must be > 0, got {limit:g}")
    if budget_s is None and evaluations is None:
        raise SegueError("a search needs a budget or a number of evaluations")
    _compile(objective)
    begin = time.perf_counter()
    run = _Run(
        workload,
        objective,
        seed,
        float("inf") if budget_s is None else begin + budget_s,
        2**62 if evaluations is None else evaluations,
    )
    if start is not None:
        run.offer(start)
    run.cuts()
    for place in count():
        before = run.used
        if run.over or workload.accelerators == 0:
            break
        run.anneal(place)
        if run.used == before:
            break
    return Found(run.best, run.score, run.used, time.perf_counter() - begin)


class _Run:
    """One search: its limits, and the best placement so far."""

    def __init__(self, workload: Workload, objective: str, seed: int, until: float, limit: int):
        self.workload, self.objective = workload, objective
        self.until, self.limit, self.used = until, limit, 0
        self.rng = np.random.default_rng(seed)
        self.best = np.full(workload.num_nodes, CPU, np.int64)
        self.score = OBJECTIVES[objective](workload, self.best)
        self.starts: list[tuple[bool, float, Units, Ints]] = []

    @property
    def over(self) -> bool:
        """Whether a limit is reached."""
        return self.used >= self.limit or time.perf_counter() >= self.until

    def cuts(self) -> None:
        """Cut random orders into runs; the best of them is what annealing starts from."""
        latency = self.objective == "latency"
        for _ in range(ORDERS):
            units = make_units(self.workload, self.rng, contract=latency)
            unit_devices = cut(self.workload, units, total=latency)
            score = self.offer(unit_devices[units.of_node])
            self.used += 1
            self.starts.append((not score.feasible, score.value_ms, units, unit_devices))
            if self.over:
                break
        self.starts.sort(key=lambda start: start[:2])

    def anneal(self, place: int) -> None:
        """One round; every other one goes on from the best placement so far, less hot."""
        _, _, units, unit_devices = self.starts[(place // 2) % min(3, len(self.starts))]
        hottest = HOTTEST
        if place % 2:
            unit_devices = np.array([self.best[units.members[first]] for first in units.start[:-1]])
            hottest = HOTTEST / 3
        total = min(LONGEST, int(ROUND * GROWTH ** min(place, 20)))
        state = make_state(self.workload, units, int(self.rng.integers(2**63)))
        for unit in np.flatnonzero(unit_devices != CPU):
            move(self.workload.flow, units, state, int(unit), int(unit_devices[unit]))
        best, best_value = state.devices.copy(), np.array([np.inf])
        work = _Work(make_draft(units), *latency_room(self.workload.num_nodes, len(state.loads)))
        rules = _Rules(self.objective == "latency", self.workload.accelerator_bytes, self.workload.cpus > 0)
        spent, chunk = 0, max(50, CHUNK // self.workload.num_nodes)
        while spent < total and not self.over:
            steps = min(chunk, total - spent, self.limit - self.used)
            state.loads[:] = 0.0
            add_loads(self.workload.flow, state.devices, state.loads, np.full(len(state.loads), -1))
            priced = _anneal(
                self.workload.flow, units, state, work, rules, (spent, steps, total, hottest), best, best_value
            )
            spent += steps
            self.used += priced
        self.offer(best)

    def offer(self, devices: Ints) -> Score:
        """Keep a placement if it is the best so far; returns its score."""
        score = OBJECTIVES[self.objective](self.workload, devices)
        if (not score.feasible, score.value_ms) < (not self.score.feasible, self.score.value_ms):
            self.best, self.score = devices.copy(), score
        return score


@hot
def _anneal(
    flow: Flow,
    units: Units,
    state: State,
    work: _Work,
    rules: _Rules,
    schedule: tuple[int, int, int, float],
    best: Ints,
    best_value: Floats,
) -> int:
    """A stretch of one round; returns how many placements it priced.

    `schedule` is the steps before it, its own, the whole round's, and the hottest temperature.
    """
    before, steps, total, hottest = schedule
    draft, priced = work.draft, 0
    _, energy = _price(flow, state, work, rules)
    scale = energy if energy < np.inf else 1.0
    for step in range(steps):
        size = propose(units, state, draft)
        for place in range(size):
            if draft.targets[place] == 0 and not rules.has_cpu:
                size = 0
        if size == 0:
            continue
        for place in range(size):
            unit = draft.units[place]
            draft.origins[place] = state.unit_device[unit]
            move(flow, units, state, unit, draft.targets[place])
        priced += 1
        value, proposed = _price(flow, state, work, rules)
        temperature = scale * hottest * (COLDEST / hottest) ** ((before + step) / total)
        if proposed - energy <= -temperature * np.log(1.0 - uniform(state.rng)):
            energy = proposed
            if value < best_value[0] * (1 - 1e-12):
                best_value[0] = value
                for node in range(best.shape[0]):
                    best[node] = state.devices[node]
        else:
            for place in range(size):
                move(flow, units, state, draft.units[place], draft.origins[place])
    return priced


@hot
def _price(flow: Flow, state: State, work: _Work, rules: _Rules) -> tuple[float, float]:
    """The objective in milliseconds (infinite where memory overflows) and the energy that annealing lowers."""
    loads = state.loads
    largest = others = overflow = 0.0
    for device in range(loads.shape[0]):
        largest = max(largest, loads[device])
        overflow += max(0.0, state.held[device] - rules.accelerator_bytes)
    if rules.latency:
        value = last_finish(
            flow, state.devices, loads, work.missing, work.start, work.queue, work.first, work.following
        )
        energy = value
    else:
        for device in range(loads.shape[0]):
            power = loads[device] / max(largest, TINY)
            for _ in range(DOUBLINGS):
                power *= power
            others += power
        for _ in range(DOUBLINGS):
            others = np.sqrt(others)
        value, energy = largest, largest * others
    if overflow > rules.accelerator_bytes * ROUNDING:
        energy *= 1.02 + OVERFLOW * overflow / max(rules.accelerator_bytes, 1.0)
        value = np.inf
    return value, energy


def _compile(objective: str) -> None:
    """Run once on a workload of two nodes, so that compiling takes none of the budget."""
    zeros, ones = np.zeros(2), np.ones(2)
    tiny = Workload(
        name="tiny",
        accelerators=1,
        cpus=1,
        accelerator_bytes=1.0,
        ids=np.arange(2),
        supported=np.ones(2, bool),
        cpu_ms=ones,
        accelerator_ms=ones,
        is_backward=np.zeros(2, bool),
        color=np.full(2, -1),
        size_bytes=zeros,
        cost_ms=zeros,
        edges=np.array([[0, 1]]),
    )
    run = _Run(tiny, objective, 0, float("inf"), ORDERS + 1)
    run.cuts()
    run.anneal(0)
