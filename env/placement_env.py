"""`PlacementEnv`: the gymnasium environment in which an agent moves ops between devices."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ..placement.clock import Clock, StepReport
from ..placement.placement import Placement, check_placement
from .config import EnvConfig
from .observation import (
    Observation,
    action_mask,
    observation_space,
    observe,
    step_features,
)
from .problem import Problem, make_problem
from .scenarios import Scenario, ScenarioSampler
from .state import State, make_state


class PlacementEnv(gymnasium.Env[Observation, np.int64]):
    """Move groups of ops between devices so that a training step takes less time.

    ## Description
    In every step the agent takes one unit of the graph to one device, or stops. Units are the blocks of a hierarchy from
    about four large parts of the model down to single groups (see `segue.placement.coarsen`), the first and last parts
    of every run of consecutive groups on one device, whose moves shift the border between two devices, and all that a
    device holds, which changes places with what the other device holds (see `segue.env.units`). The clock is asked once a
    move. The environment does not know which clock it has: with `SimulatedClock` a step is a calculation, with
    `MeasuredClock` it is a step of the user's training.

    ## Action Space
    `Discrete(max_units * max_devices + 1)`: 0 stops, `1 + unit * max_devices + device` moves all of a unit to a device.
    `action_masks()` (for sb3-contrib's MaskablePPO) excludes units and devices that do not exist, moves that change nothing,
    and moves whose parameters and optimizer state alone overflow the device. An excluded action changes nothing.

    ## Observation Space
    A `Dict` of `Box`es of float32, zero where nothing stands (`N` max_groups, `D` max_devices, `E` max_edges,
    `U` max_units). Times are
    relative to the current step time.

    | key             | shape     | content                                                                                |
    |-----------------|-----------|----------------------------------------------------------------------------------------|
    | `groups`        | N, 13     | compute share (log and plain), logs of state, saved and output bytes' shares, position, |
    |                 |           | level, in and out degree, compute time where it is, transfer time of its edges,        |
    |                 |           | longest chain through it relative to the critical path, how busy its device is          |
    | `group_mask`    | N         | 1 where a group stands                                                                 |
    | `devices`       | D, 9      | log relative speed, memory left, log capacity, shares of the step busy, waiting and    |
    |                 |           | sending, share of memory taken by state, share of groups, busy relative to the busiest |
    | `device_mask`   | D         | 1 where a device stands                                                                |
    | `links`         | D, D, 2   | log latency and log time of a mean edge's bytes                                        |
    | `placement`     | N, D      | share of each group's ops on each device (one-hot unless the start splits a group)     |
    | `edges`         | E, 2      | source and target group                                                                |
    | `edge_features` | E, 2      | log share of bytes, transfer time                                                      |
    | `edge_mask`     | E         | 1 where an edge stands                                                                 |
    | `units`         | U, N      | 1 for the groups of each unit                                                          |
    | `moves`         | U, D, 19  | for each move: compute time of the unit there; the device's load after, relative to    |
    |                 |           | the step and to the largest load; share of the unit's neighbours' bytes there; transfer |
    |                 |           | time after, and its change; messages after; memory after; share of the unit that is    |
    |                 |           | there already; its compute time now; log changes of the estimate, of the critical path, |
    |                 |           | the fullest device and the fullest link (`segue.env.bounds`); log estimate relative to |
    |                 |           | the step; longest chain through the unit; share of groups; whether it is a run's end,  |
    |                 |           | and whether devices change places                                                      |
    | `step`          | 14        | log step time relative to the start and to the best, log change by the last move,      |
    |                 |           | progress, log microbatches, overflow, transfer and largest load relative to the step,  |
    |                 |           | log step time relative to the mean device's compute, number of devices, critical path, |
    |                 |           | fullest link, log step time relative to the estimate, whether the objective is the     |
    |                 |           | load of the busiest device                                                             |
    | `action_mask`   | U * D + 1 | see Action Space                                                                       |

    ## Rewards
    `log(previous step time / new step time)`, less `move_weight` times the moved share of parameters and optimizer state,
    less the change of the overflow penalty (`overflow_penalty * (1 + min(1, overflow / capacity))` for a placement that
    overflows memory, 0 for one that fits). Stopping is worth 0.

    ## Starting State
    `start` if given, else what the scenario sampler draws (graph, topology and start), else all ops on the first device.

    ## Episode End
    Terminates when the agent stops, and after `horizon` moves. `info` then, as always, holds `step_time_s`, `feasible`,
    `best_step_time_s` and `best_placement` (the best that fits memory; the start if none does), and `moved_bytes`.

    ## Arguments
    - `clock`: any clock; without one, episodes are random `Scenario`s.
    - `start`: the starting placement, with `clock`.
    - `sampler`: draws a `Scenario` for each episode from a `numpy.random.Generator`, instead of `clock`.
    - `config`: sizes and reward weights.

    Raises:
        SegueError: if `start` does not fit the clock's graph and topology, or the topology has too many devices.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (gymnasium's contract)

    def __init__(
        self,
        clock: Clock | None = None,
        start: Placement | None = None,
        *,
        sampler: Callable[[np.random.Generator], Scenario] | None = None,
        config: EnvConfig | None = None,
    ):
        self.config = config or EnvConfig()
        self.observation_space = observation_space(self.config)  # pyright: ignore[reportAttributeAccessIssue]
        self.action_space = spaces.Discrete(self.config.max_units * self.config.max_devices + 1)
        if clock is not None:
            start = start or Placement(np.zeros(clock.graph.num_ops, np.int64), clock.microbatches)
            check_placement(start, clock.graph, clock.topology, "PlacementEnv: start")
            scenario = Scenario(clock, start)
            self._sampler = lambda rng: scenario
        else:
            self._sampler = sampler or ScenarioSampler(self.config.max_devices)
        self._scenario: Scenario | None = None
        self._problem: Problem | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; `options["start"]` may give another starting placement (`int64[ops]`)."""
        super().reset(seed=seed)
        scenario = self._sampler(self.np_random)
        if scenario is not self._scenario or self._problem is None:
            self._scenario, self._problem = scenario, make_problem(scenario.clock, self.config, scenario.costs)
        devices = np.array((options or {}).get("start", scenario.start.devices), np.int64)
        self._microbatches = scenario.start.microbatches
        self._taken = 0
        self._moved_bytes = 0.0
        self._change = 0.0
        self._state = self._measure(devices)
        report = self._state.report
        self._start_s = self._best_s = report.step_time_s
        self._best = devices
        self._any_feasible = report.feasible
        return self._observation(), self._info()

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move a unit, or stop."""
        reward = 0.0
        self._change = 0.0
        if action > 0 and self.action_masks()[action]:
            reward = self._move(*divmod(int(action) - 1, self.config.max_devices))
        self._taken += 1
        terminated = bool(action == 0) or self._taken >= self.config.horizon
        return self._observation(), reward, terminated, False, self._info()

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions are allowed now, `bool[max_units * max_devices + 1]`."""
        return action_mask(self._state, self.config) > 0

    @property
    def state(self) -> State:
        """The current placement with its report."""
        return self._state

    def _measure(self, devices: NDArray[np.int64]) -> State:
        assert self._problem is not None
        report = self._problem.clock.step(Placement(devices, self._microbatches))
        return make_state(self._problem, devices, report)

    def _move(self, unit: int, device: int) -> float:
        """Move a unit; returns the reward."""
        problem, before = self._state.problem, self._state
        devices = before.moved(unit, device)
        self._state = self._measure(devices)
        old, new = before.report, self._state.report
        homes = before.homes_after(np.array([unit]), np.array([device]))[0]
        here = np.take_along_axis(before.share, homes.clip(min=0)[:, None], axis=1)[:, 0]
        moved_bytes = float(((homes >= 0) * (1 - here)) @ problem.state_bytes)
        self._moved_bytes += moved_bytes
        self._change = float(np.log(new.step_time_s / old.step_time_s))
        if new.feasible and (not self._any_feasible or new.step_time_s < self._best_s):
            self._best, self._best_s, self._any_feasible = devices, new.step_time_s, True
        cost = self.config.move_weight * moved_bytes / max(float(problem.state_bytes.sum()), 1.0)
        return -self._change - cost + self._penalty(old) - self._penalty(new)

    def _penalty(self, report: StepReport) -> float:
        if report.feasible:
            return 0.0
        worst = float((report.overflow_bytes / report.capacity_bytes).max())
        return self.config.overflow_penalty * (1.0 + min(1.0, worst))

    def _observation(self) -> Observation:
        progress = self._taken / self.config.horizon
        step = step_features(self._state, self._start_s, self._best_s, self._change, progress)
        return observe(self._state, step, self.config)

    def _info(self) -> dict[str, Any]:
        report = self._state.report
        return {
            "step_time_s": report.step_time_s,
            "feasible": report.feasible,
            "best_step_time_s": self._best_s,
            "best_placement": Placement(self._best, self._microbatches),
            "moved_bytes": self._moved_bytes,
        }
