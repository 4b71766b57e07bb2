"""`Search`: placements of one problem, visited within a number of evaluations by rollouts and annealing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..env.observation import step_features
from ..env.problem import Problem
from ..env.state import State, allowed_moves, make_state
from ..placement.clock import SimulatedClock
from ..placement.move_cost import MoveCost
from ..placement.placement import Placement
from ..placement.planners.unit_annealing import OVERFLOW_CHARGE, Annealed
from .network import PlacementNetwork
from .scoring import score_states

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Moves that the network scores in one pass at most: with more, what it works on leaves the processor's caches.
MOVES_A_PASS = 8192


@dataclass(frozen=True)
class SearchSettings:
    """How the search spends its evaluations.

    Attributes:
        rollouts: rollouts of the policy, all at once, from the best starts; more than one from each if there are fewer.
        rollout_share: share of the evaluations that rollouts may take.
        patience: moves of a rollout without a new best after which it ends.
        halving: moves after which the worse half of the rollouts ends, again and again.
        guided: most evaluations whose moves the policy draws; beyond them compiled annealing goes on with uniform ones.
        cycles: annealing runs with the policy's moves, each from the best placement so far; 0 for rollouts alone.
        hot: annealing temperature at the start, as a relative change of the step time.
        cold: the same at the end.
        uniform: share of moves that are drawn without the policy.
        sharpness: what the policy's logits are multiplied by.
        pairs: share of tries that change two units at once.
    """

    rollouts: int = 16
    rollout_share: float = 0.5
    patience: int = 8
    halving: int = 2
    guided: int = 100
    cycles: int = 2
    hot: float = 0.01
    cold: float = 0.001
    uniform: float = 0.03
    sharpness: float = 3.0
    pairs: float = 0.05


ZERO_SHOT = SearchSettings(rollouts=1, rollout_share=1.0, patience=32, cycles=0, guided=0)
"""One greedy rollout and nothing else."""


@dataclass(frozen=True, eq=False)
class Visit:
    """One placement that the clock was asked for.

    Attributes:
        devices: device of every op.
        step_time_s: what the clock said.
        overflow_bytes: what does not fit on its tightest device.
        cost: what is minimised: step time, and what moving there costs each step.
        energy: logarithm of `cost`, and more where memory overflows.
        rank: what decides between placements: overflowing bytes, cost, bytes to move.
        source: how it was found.
    """

    devices: Ints
    step_time_s: float
    overflow_bytes: float
    cost: float
    energy: float
    rank: tuple[float, float, float]
    source: str


class Search:
    """Placements of one problem visited within a number of evaluations.

    Args:
        problem: what to place.
        start: where ops are now, `int64[ops]`; ties go to the placement that moves fewer bytes from here.
        evaluations: how often the clock may be asked; a placement that was asked for before costs nothing.
        microbatches: of the run.
        op_bytes: bytes that move with each op, `float64[ops]`.
        move_cost: what moving costs, added to the step time.
        avoid: maps that are not wanted as an answer.

    Attributes:
        best: the best of all visits.
        answer: the best of those that are not to be avoided; None as long as there is none.
    """

    def __init__(
        self,
        problem: Problem,
        start: Ints,
        evaluations: int,
        microbatches: int,
        op_bytes: Floats,
        move_cost: MoveCost,
        avoid: Sequence[Ints] = (),
    ):
        assert isinstance(problem.clock, SimulatedClock)
        self.problem, self.clock = problem, problem.clock
        self.start = start
        self.left = evaluations
        self.best: Visit | None = None
        self.answer: Visit | None = None
        self.move_cost, self.avoid = move_cost, tuple(avoid)
        self._microbatches, self._op_bytes = microbatches, op_bytes
        self._avoided = {devices.tobytes() for devices in avoid}
        self._smallest = float(self.clock.topology.memory_bytes.min())
        self._visits: dict[bytes, Visit] = {}
        self._states: dict[Visit, State] = {}
        self.chances: dict[Visit, Floats] = {}

    def visit(self, devices: Ints, source: str) -> Visit | None:
        """Ask the clock, or remember; None if the evaluations are used up."""
        return self.visit_all([devices], source)[0]

    def visit_all(self, maps: Sequence[Ints], source: str) -> list[Visit | None]:
        """Ask the clock for all maps at once that it was not asked for before; None for those beyond the evaluations."""
        new = {devices.tobytes(): devices for devices in maps if not self.is_known(devices)}
        asked = list(new.values())[: self.left]
        if asked:
            self.left -= len(asked)
            for devices, step_time_s, overflow in zip(asked, *self.clock.evaluate_many(np.stack(asked)), strict=True):
                self._add(self._judge(devices, float(step_time_s), float(overflow), source))
        return [self._visits.get(devices.tobytes()) for devices in maps]

    def take_in(self, found: Annealed, source: str) -> None:
        """Take over what an annealing found and what it spent."""
        self.left = max(0, self.left - found.evaluations)
        self._add(self._judge(found.devices, found.step_time_s, found.overflow_bytes, source))

    def _add(self, visit: Visit) -> Visit:
        key = visit.devices.tobytes()
        self._visits[key] = visit
        if self.best is None or visit.rank < self.best.rank:
            self.best = visit
        if key not in self._avoided and (self.answer is None or visit.rank < self.answer.rank):
            self.answer = visit
        return visit

    def _judge(self, devices: Ints, step_time_s: float, overflow: float, source: str) -> Visit:
        cost = step_time_s + self.move_cost.of(devices)
        moved = float(self._op_bytes[devices != self.start].sum())
        energy = float(np.log(cost))
        if overflow:
            energy += OVERFLOW_CHARGE * (1.0 + min(1.0, overflow / self._smallest))
        return Visit(devices, step_time_s, overflow, cost, energy, (overflow, cost, moved), source)

    def is_known(self, devices: Ints) -> bool:
        """Whether the clock was asked for a map before."""
        return devices.tobytes() in self._visits

    def state(self, visit: Visit) -> State:
        """The state whose features the policy sees; the clock's report of a visited placement is no new evaluation."""
        return self.states([visit])[0]

    def states(self, visits: Sequence[Visit]) -> list[State]:
        """The states of several visits, which are kept until others are asked for."""
        if any(visit not in self._states for visit in visits):
            self._states = {visit: self._states.get(visit) or self._make_state(visit) for visit in visits}
        return [self._states[visit] for visit in visits]

    def _make_state(self, visit: Visit) -> State:
        report = self.clock.step(Placement(visit.devices, self._microbatches))
        return make_state(self.problem, visit.devices, report)

    def moved(self, visit: Visit, move: int) -> Ints:
        """The map after move `unit * devices + device` from a visit."""
        return self.state(visit).moved(*divmod(move, self.problem.num_devices))

    def allowed(self, visit: Visit) -> NDArray[np.bool_]:
        """Which moves `unit * devices + device` from a visit are allowed, `bool[u * d]`."""
        return allowed_moves(self.state(visit)).ravel()

    def scores(
        self,
        network: PlacementNetwork,
        visits: Sequence[Visit],
        changes: Sequence[float] = (0.0,),
        progress: float = 0.5,
    ) -> list[Floats]:
        """What the policy makes of stopping and of every move `unit * devices + device`, `float64[1 + u * d]` each visit.

        Moves that are not allowed have minus infinity.

        Args:
            network: the policy.
            visits: where the moves begin.
            changes: of each, the logarithm of the step time's change by the move that led there.
            progress: share of the moves that are over.
        """
        assert self.best is not None
        start_s, best_s = self._visits[self.start.tobytes()].step_time_s, self.best.step_time_s
        states = self.states(visits)
        steps = [
            step_features(state, start_s, best_s, change, progress)
            for state, change in zip(states, changes, strict=True)
        ]
        moves = max(state.member.shape[0] for state in states) * self.problem.num_devices
        size, scores = max(1, MOVES_A_PASS // moves), []
        for row in range(0, len(states), size):
            scores += score_states(network, states[row : row + size], steps[row : row + size])
        return [
            np.append(one.stop.item(), np.where(allowed_moves(state), one.logits[0].double().numpy(), -np.inf))
            for state, one in zip(states, scores, strict=True)
        ]
