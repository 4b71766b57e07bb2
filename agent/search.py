"""The search that the policy proposes moves to: rollouts, then annealing over whole units."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..env.config import EnvConfig
from ..env.observation import State, allowed_moves, make_state, move_features, observe, step_features
from ..env.problem import Problem
from ..placement.clock import StepReport
from ..placement.placement import Placement
from .network import PlacementNetwork

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SearchSettings:
    """How the search spends its evaluations.

    Attributes:
        rollouts: policy rollouts side by side; the first takes the likeliest action, the others sample.
        rollout_share: share of the evaluations that rollouts may take.
        cycles: annealing runs, each from the best placement so far.
        hot: annealing temperature at the start, as a relative change of the step time.
        cold: the same at the end.
        uniform: share of moves that are drawn without the policy.
        pairs: share of tries that change two units at once.
    """

    rollouts: int = 1
    rollout_share: float = 0.4
    cycles: int = 2
    hot: float = 0.05
    cold: float = 0.001
    uniform: float = 0.15
    pairs: float = 0.05


@dataclass(frozen=True, eq=False)
class Visit:
    """One placement that the clock was asked for.

    Attributes:
        devices: device of every op.
        report: what the clock said.
        cost: what is minimised: step time, or seconds over the horizon with the cost of moving.
        energy: logarithm of `cost`, and more where memory overflows.
        rank: what decides between placements: overflowing bytes, cost, bytes to move.
        source: how it was found.
    """

    devices: Ints
    report: StepReport
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
        cost: seconds that are minimised, of a map and its step time.
        microbatches: of the run.
        op_bytes: bytes that move with each op, `float64[ops]`.
    """

    def __init__(
        self,
        problem: Problem,
        start: Ints,
        evaluations: int,
        cost: Callable[[Ints, float], float],
        microbatches: int,
        op_bytes: Floats,
    ):
        self.problem = problem
        self.start = start
        self.left = evaluations
        self.best: Visit | None = None
        self._cost, self._microbatches, self._op_bytes = cost, microbatches, op_bytes
        self._visits: dict[bytes, Visit] = {}
        self._known_weights: dict[int, Floats] = {}
        self._group_of = problem.groups.group_of
        self._config = EnvConfig(problem.num_groups, problem.num_devices, max(1, len(problem.edges)))

    def visit(self, devices: Ints, source: str) -> Visit | None:
        """Ask the clock, or remember; None if the evaluations are used up."""
        key = devices.tobytes()
        known = self._visits.get(key)
        if known is None:
            if self.left == 0:
                return None
            self.left -= 1
            report = self.problem.clock.step(Placement(devices, self._microbatches))
            known = self._visits[key] = self._judge(devices, report, source)
            if self.best is None or known.rank < self.best.rank:
                self.best = known
        return known

    def _judge(self, devices: Ints, report: StepReport, source: str) -> Visit:
        cost = self._cost(devices, report.step_time_s)
        overflow = report.overflow_bytes
        moved = float(self._op_bytes[devices != self.start].sum())
        energy = float(np.log(cost))
        if overflow.any():
            energy += 0.5 * (1.0 + min(1.0, float((overflow / report.capacity_bytes).max())))
        return Visit(devices, report, cost, energy, (float(overflow.sum()), cost, moved), source)

    def state(self, visit: Visit) -> State:
        """The state whose features the policy sees."""
        return make_state(self.problem, visit.devices, visit.report)

    def moved(self, devices: Ints, unit: int, device: int) -> Ints:
        """The map after all ops of a unit have moved to `device`."""
        return np.where(self.problem.member[unit][self._group_of] > 0, device, devices)

    def rollouts(self, network: PlacementNetwork, starts: Sequence[Visit], seed: int, budget: int) -> None:
        """Sweep the units from each start at once; the first of each start greedily, the others by sampling.

        Args:
            network: the policy.
            starts: where each rollout begins.
            seed: of the sampled actions.
            budget: evaluations that may be used up.
        """
        floor = max(0, self.left - budget)
        generator = np.random.default_rng(seed)
        visits = list(starts)
        greedy = [all(visit is not other for other in starts[:row]) for row, visit in enumerate(starts)]
        changes = [0.0] * len(visits)
        for unit in range(self.problem.num_units):
            logits = self._rollout_logits(network, visits, starts, changes, unit)
            for row, visit in enumerate(visits):
                noise = 0.0 if greedy[row] else generator.gumbel(size=logits.shape[1])
                action = int(np.argmax(logits[row] + noise))
                changes[row] = 0.0
                if action == 0 or self.left <= floor:
                    continue
                found = self.visit(self.moved(visit.devices, unit, action - 1), "policy")
                if found is not None:
                    changes[row] = float(np.log(found.report.step_time_s / visit.report.step_time_s))
                    visits[row] = found
            if self.left <= floor:
                return

    def _rollout_logits(
        self, network: PlacementNetwork, visits: list[Visit], starts: Sequence[Visit], changes: list[float], unit: int
    ) -> Floats:
        assert self.best is not None
        rows = []
        for visit, start, change in zip(visits, starts, changes, strict=True):
            state = self.state(visit)
            best_s = min(start.report.step_time_s, self.best.report.step_time_s)
            step = step_features(state, start.report.step_time_s, best_s, change, unit / self.problem.num_units)
            rows.append(observe(state, unit, step, self._config))
        batch = {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}
        with torch.no_grad():
            logits = network(batch)[0].double().numpy()
        return np.where(batch["action_mask"].numpy() > 0, logits, -np.inf)

    def search(self, network: PlacementNetwork, seed: int, settings: SearchSettings) -> None:
        """Anneal from the best placement so far, several times, until the evaluations are used up."""
        for cycle in range(settings.cycles):
            assert self.best is not None
            floor = self.left * (settings.cycles - cycle - 1) // (settings.cycles - cycle)
            self._anneal(network, self.best, seed + cycle, settings, floor)

    def _anneal(self, network: PlacementNetwork, visit: Visit, seed: int, settings: SearchSettings, floor: int) -> None:
        """Annealing from `visit` whose moves the policy draws, until `floor` evaluations are left.

        A move that was refused is not drawn again before the placement changes; once all were, two moves at once are
        accepted whatever they do.
        """
        generator = np.random.default_rng(seed)
        total, idle = max(1, self.left - floor), 0
        current, weights = visit, self._weights(network, visit, settings)
        while self.left > floor and weights.any() and idle < 10 * total:
            before = self.left
            temperature = settings.cold * (settings.hot / settings.cold) ** ((self.left - floor) / total)
            moves = generator.choice(len(weights), size=2, p=weights / weights.sum())
            alone = generator.random() >= settings.pairs
            found = self._after(current, moves[:1] if alone else moves)
            idle += self.left == before
            if found is None:
                return
            if found is not current and found.energy - current.energy < temperature * generator.exponential():
                current, weights = found, self._weights(network, found, settings)
                continue
            weights[moves[0]] *= not alone
            if not weights.any():
                weights = self._weights(network, current, settings)
                moves = generator.choice(len(weights), size=2, p=weights / weights.sum())
                current = self._after(current, moves) or current
                weights = self._weights(network, current, settings)

    def _after(self, visit: Visit, moves: Ints) -> Visit | None:
        """The visit after moves `unit * devices + device`; None if the evaluations are used up."""
        devices = visit.devices
        for move in moves:
            devices = self.moved(devices, *divmod(int(move), self.problem.num_devices))
        return self.visit(devices, "search")

    def _weights(self, network: PlacementNetwork, visit: Visit, settings: SearchSettings) -> Floats:
        """Chances of all moves `unit * devices + device`; all zero if none is allowed."""
        known = self._known_weights.get(id(visit))
        if known is None:
            state = self.state(visit)
            allowed = allowed_moves(state).ravel()
            known = np.zeros(len(allowed))
            if allowed.any():
                scores = self.scores(network, state).ravel()
                known = np.exp(np.where(allowed, scores - scores[allowed].max(), -np.inf))
                known = (1 - settings.uniform) * known / known.sum() + settings.uniform * allowed / allowed.sum()
            self._known_weights[id(visit)] = known
        return known.copy()

    def scores(self, network: PlacementNetwork, state: State) -> Floats:
        """How much the policy prefers each move to keeping the unit, `float64[u, d]`."""
        assert self.best is not None
        start = self._visits[self.start.tobytes()].report.step_time_s
        step = step_features(state, start, self.best.report.step_time_s, 0.0, 0.5)
        row = observe(state, 0, step, self._config)
        batch = {key: torch.from_numpy(value[None]) for key, value in row.items()}
        units = torch.from_numpy(self.problem.member.astype(np.float32))[None]
        with torch.no_grad():
            logits = network.score(network.encode(batch), units, torch.from_numpy(move_features(state))[None])[0][0]
        return (logits[:, 1:] - logits[:, :1]).double().numpy()
