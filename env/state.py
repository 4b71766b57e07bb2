"""`State`: one placement of a problem with what its clock said, and the moves that lead away from it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..placement.clock import StepReport
from .bounds import Bounds, bounds_now
from .problem import Floats, Ints, Problem
from .units import contents, run_ends

Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class State:
    """One placement of a problem, with what its clock said.

    Attributes:
        problem: the problem.
        devices: device of every op, `int64[ops]`.
        share: share of each group's ops on each device, `float64[n, d]`.
        home: device that most of each group is on, `int64[n]`.
        member: whether a group is in a unit that can move, `float64[u, n]`: the problem's units, then the ends of runs, then
            all that a device holds, which changes places with what the other device holds.
        swaps_with: the device to which the other's groups go in exchange, -1 for units that move alone, `int64[u]`.
        report: the clock's report.
        load_s: compute seconds of a step on each device, `float64[d]`.
        edge_s: transfer seconds of a step over each edge, `float64[e]`.
        latency: latency from each group to each device, `float64[n, d]`.
        pace: seconds per byte, likewise.
        bounds: bounds of the step.
        through_s: the longest chain of one microbatch through each group, `float64[n]`.
    """

    problem: Problem
    devices: Ints
    share: Floats
    home: Ints
    member: Floats
    swaps_with: Ints
    report: StepReport
    load_s: Floats
    edge_s: Floats
    latency: Floats
    pace: Floats
    bounds: Bounds
    through_s: Floats

    def homes_after(self, units: Ints, targets: Ints) -> Ints:
        """Device of every group after each of `k` moves of a unit to a device, `int64[k, n]`; -1 for those that stay."""
        member, partner = self.member[units] > 0, self.swaps_with[units]
        back = (partner >= 0)[:, None] & (self.home == targets[:, None])
        return np.where(member, targets[:, None], np.where(back, partner[:, None], -1))

    def after(self, units: Ints, targets: Ints) -> Ints:
        """Device of every op after each of `k` moves of a unit to a device, `int64[k, ops]`."""
        homes = self.homes_after(units, targets)[:, self.problem.groups.group_of]
        return np.where(homes >= 0, homes, self.devices)

    def moved(self, unit: int, target: int) -> Ints:
        """Device of every op after one move, `int64[ops]`."""
        return self.after(np.array([unit]), np.array([target]))[0]


def make_state(problem: Problem, devices: Ints, report: StepReport) -> State:
    """The state of `problem` under an op-to-device map that `report` was made for."""
    of, count = problem.groups.group_of, problem.num_devices
    share = np.bincount(of * count + devices, minlength=problem.num_groups * count).reshape(-1, count)
    share = share / problem.sizes[:, None]
    home = share.argmax(axis=1)
    latency, pace = share @ problem.latency_s, share @ problem.seconds_per_byte
    source, target = problem.edges.T
    there = share[target]
    edge_s = problem.edge_messages * np.einsum("ed,ed->e", latency[source], there)
    edge_s += problem.edge_bytes * np.einsum("ed,ed->e", pace[source], there)
    load = np.einsum("nd,nd->d", share, problem.compute_s)
    ends, (held, holder) = run_ends(home), contents(home)
    member = np.concatenate([problem.member, ends.astype(float), held.astype(float)])
    alone = np.full(len(problem.member) + len(ends), -1)
    bounds, through = bounds_now(problem.pipeline, home)
    return State(
        problem, devices, share, home, member, np.concatenate([alone, holder]), report, load, edge_s, latency, pace, bounds,
        through,
    )  # fmt: skip


def unit_share(state: State) -> Floats:
    """Share of each unit's groups on each device, `float64[u, d]`."""
    return (state.member @ state.share) / state.member.sum(axis=1, keepdims=True)


def allowed_moves(state: State) -> Bools:
    """Moves that change something and whose parameters and optimizer state fit where they go, `bool[u, d]`."""
    problem, member = state.problem, state.member
    capacity = problem.clock.topology.memory_bytes
    there = state.share * problem.state_bytes[:, None]
    coming = (member @ problem.state_bytes)[:, None]
    after = there.sum(axis=0) + coming - member @ there
    swaps = np.flatnonzero(state.swaps_with >= 0)
    partner = state.swaps_with[swaps]
    held = np.bincount(state.home, problem.state_bytes, problem.num_devices)
    after[swaps] = coming[swaps]
    fits = after <= capacity
    fits[swaps] &= held <= capacity[partner][:, None]
    changes = unit_share(state) < 1 - 1e-9
    changes[swaps, partner] = False
    return changes & fits
