"""The teacher: annealing's answer to a scenario, states on the way to it, and what every move from them is worth."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from ..env.config import EnvConfig
from ..env.observation import ESTIMATE, Observation, move_features, observe_state, step_features
from ..env.problem import Problem, make_problem
from ..env.scenarios import Scenario
from ..env.state import State, allowed_moves, make_state
from ..placement.clock import SimulatedClock
from ..placement.placement import Placement
from ..placement.planners.unit_annealing import OVERFLOW_CHARGE, anneal_units

Rng = np.random.Generator
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TeacherSettings:
    """How much the teacher does for a scenario.

    Attributes:
        evaluations: placements priced by each of two annealing runs.
        snapshots: evaluations of the first run after which its state is taken.
        perturbations: random moves away from the best placement, a state each.
        wanderings: random moves away from the start, a state each.
        moves: most moves that are priced in a state.
        sharpness: temperature of the target over moves, relative to the best move's gain.
        least: the least temperature, as a relative change of the step time.
        agreement: how much it is worth, as a relative change of the step time, to bring all ops where the teacher has them.
    """

    evaluations: int = 1000
    snapshots: tuple[int, ...] = (1, 10, 30, 80, 200, 600)
    perturbations: tuple[int, ...] = (0, 1, 2, 4)
    wanderings: tuple[int, ...] = (1, 3)
    moves: int = 112
    sharpness: float = 0.25
    least: float = 0.008
    agreement: float = 0.1


@dataclass(frozen=True, eq=False)
class Sample:
    """One state with what `k` of its moves are worth.

    Attributes:
        observation: of the state, without its moves.
        units: groups of each move's unit, `uint8[k, n]`.
        devices: where each goes, `int64[k]`.
        moves: features of each, `float32[k, MOVE_FEATURES]`.
        change: logarithm of energy after over before, `float32[k]`.
        target: chances of stopping and of each move, `float32[k + 1]`.
        value: logarithm of the state's energy over the best known.
    """

    observation: Observation
    units: NDArray[np.uint8]
    devices: Ints
    moves: NDArray[np.float32]
    change: NDArray[np.float32]
    target: NDArray[np.float32]
    value: float


@dataclass(frozen=True, eq=False)
class Lesson:
    """A scenario as the teacher sees it.

    Attributes:
        problem: the scenario's.
        start: where it starts, `int64[ops]`.
        best: the best placement known.
        states: placements worth learning from.
    """

    problem: Problem
    start: Ints
    best: Ints
    states: tuple[Ints, ...]

    @property
    def clock(self) -> SimulatedClock:
        """The scenario's clock."""
        assert isinstance(self.problem.clock, SimulatedClock)
        return self.problem.clock


def prepare(scenario: Scenario, max_groups: int, rng: Rng, settings: TeacherSettings) -> Lesson:
    """Solve a scenario by annealing from its start and again from the answer, and gather states on the way."""
    clock, start = scenario.clock, np.array(scenario.start.devices, np.int64)
    assert isinstance(clock, SimulatedClock)
    problem = make_problem(clock, EnvConfig(max_groups, clock.topology.num_devices, 4 * max_groups))
    groups, budget = problem.groups, settings.evaluations
    seeds = rng.integers(1 << 31, size=2)
    first = anneal_units(
        clock, groups, start, evaluations=budget, seed=int(seeds[0]), hot=0.1, snapshots=settings.snapshots
    )
    second = anneal_units(clock, groups, first.devices, evaluations=budget, seed=int(seeds[1]), hot=0.02)
    states = list(first.trail)
    states += [_wander(problem, second.devices, moves, rng) for moves in settings.perturbations]
    states += [_wander(problem, start, moves, rng) for moves in settings.wanderings]
    return Lesson(problem, start, second.devices, tuple(states))


def _wander(problem: Problem, devices: Ints, moves: int, rng: Rng) -> Ints:
    """The map after random units have moved to random devices."""
    for _ in range(moves):
        member = problem.member[rng.integers(problem.num_units)]
        devices = np.where(member[problem.groups.group_of] > 0, rng.integers(problem.num_devices), devices)
    return devices


def teach(lesson: Lesson, devices: Ints, rng: Rng, settings: TeacherSettings) -> Sample | None:
    """What the moves from a placement are worth; None if there are none."""
    problem, clock = lesson.problem, lesson.clock
    state = make_state(problem, devices, clock.step(Placement(devices, clock.microbatches)))
    allowed = allowed_moves(state)
    features = move_features(state)
    chosen = _choose(features, allowed, settings.moves, rng)
    if not len(chosen):
        return None
    units, targets = np.divmod(chosen, problem.num_devices)
    seconds, overflow = clock.evaluate_many(state.after(units, targets))
    now, best = (_energy(clock, *clock.evaluate(where)) for where in (devices, lesson.best))
    change = _energy(clock, seconds, overflow) - now
    worth = -change + settings.agreement * _agreement(lesson, state, units, targets)
    worth = np.append(0.0, worth)
    temperature = max(settings.least, settings.sharpness * float(worth.max()))
    target = np.exp((worth - worth.max()) / temperature)
    start_s = clock.step_time(lesson.start)
    best_s = min(start_s, state.report.step_time_s)
    step = step_features(state, start_s, best_s, 0.0, float(rng.random()))
    return Sample(
        observation=observe_state(state, step),
        units=state.member[units].astype(np.uint8),
        devices=targets.astype(np.int64),
        moves=features[units, targets],
        change=change.clip(-2, 2).astype(np.float32),
        target=(target / target.sum()).astype(np.float32),
        value=float(np.clip(now - best, 0.0, 3.0)),
    )


def _choose(features: NDArray[np.float32], allowed: NDArray[np.bool_], most: int, rng: Rng) -> Ints:
    """Moves `unit * d + device` to price: those that look best by their bounds, and others at random."""
    possible = np.flatnonzero(allowed)
    if len(possible) <= most:
        return possible
    estimate = features[:, :, ESTIMATE].ravel()[possible]
    order = np.argsort(estimate, kind="stable")
    rest = rng.permutation(order[most // 3 :])[: most - most // 3]
    return possible[np.concatenate([order[: most // 3], rest])]


def _energy(clock: SimulatedClock, seconds: Floats | float, overflow: Floats | float) -> Floats:
    worst = np.minimum(1.0, np.asarray(overflow) / clock.topology.memory_bytes.min())
    return np.log(seconds) + OVERFLOW_CHARGE * (1.0 + worst) * (np.asarray(overflow) > 0)


def _agreement(lesson: Lesson, state: State, units: Ints, targets: Ints) -> Floats:
    """Share of all compute that each move brings where the teacher has it, less what it takes away from there."""
    problem = lesson.problem
    weight = problem.compute_s.mean(axis=1)
    weight = weight / weight.sum()
    report_home = _home(problem, lesson.best)
    wanted = _relabelled(problem, weight, state.home, report_home)
    homes = state.homes_after(units, targets)
    homes = np.where(homes >= 0, homes, state.home)
    return ((wanted == homes) * weight).sum(axis=1) - ((wanted == state.home) * weight).sum()


def _home(problem: Problem, devices: Ints) -> Ints:
    of, count = problem.groups.group_of, problem.num_devices
    return np.bincount(of * count + devices, minlength=problem.num_groups * count).reshape(-1, count).argmax(axis=1)


def _relabelled(problem: Problem, weight: Floats, home: Ints, wanted: Ints) -> Ints:
    """The teacher's map with interchangeable devices named so that it agrees with `home` as far as can be."""
    count = problem.num_devices
    overlap = np.zeros((count, count))
    np.add.at(overlap, (wanted, home), weight)
    rows, columns = linear_sum_assignment(overlap - 10.0 * ~_interchangeable(problem), maximize=True)
    names = np.empty(count, np.int64)
    names[rows] = columns
    return names[wanted]


def _interchangeable(problem: Problem) -> NDArray[np.bool_]:
    """Whether two devices compute, hold and are linked alike, `bool[d, d]`."""
    memory, pace = problem.clock.topology.memory_bytes, np.sort(problem.seconds_per_byte, axis=1)
    compute = problem.compute_s.sum(axis=0)
    alike = np.isclose(memory[:, None], memory) & np.isclose(compute[:, None], compute)
    return alike & np.isclose(pace[:, None], pace).all(axis=2)
