"""What the agent sees: features of groups, devices, links and of one move, relative to the current step time."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ..placement.clock import StepReport
from .config import EnvConfig
from .problem import GROUP_CONSTANTS, Ints, Problem

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Observation = dict[str, NDArray[Any]]

GROUP_FEATURES = GROUP_CONSTANTS + 2
DEVICE_FEATURES = 8
LINK_FEATURES = 2
EDGE_FEATURES = 2
MOVE_FEATURES = 10
STEP_FEATURES = 10
_BOUND = 10.0
_SHARES = ("group_mask", "device_mask", "placement", "edge_mask", "unit", "action_mask")


@dataclass(frozen=True, eq=False)
class State:
    """One placement of a problem, with what its clock said.

    Attributes:
        problem: the problem.
        devices: device of every op, `int64[ops]`.
        share: share of each group's ops on each device, `float64[n, d]`.
        report: the clock's report.
        load_s: compute seconds of a step on each device, `float64[d]`.
        edge_s: transfer seconds of a step over each edge, `float64[e]`.
        latency: latency from each group to each device, `float64[n, d]`.
        pace: seconds per byte, likewise.
    """

    problem: Problem
    devices: Ints
    share: Floats
    report: StepReport
    load_s: Floats
    edge_s: Floats
    latency: Floats
    pace: Floats


def make_state(problem: Problem, devices: Ints, report: StepReport) -> State:
    """The state of `problem` under an op-to-device map that `report` was made for."""
    of, count = problem.groups.group_of, problem.num_devices
    share = np.bincount(of * count + devices, minlength=problem.num_groups * count).reshape(-1, count)
    share = share / problem.sizes[:, None]
    latency, pace = share @ problem.latency_s, share @ problem.seconds_per_byte
    source, target = problem.edges.T
    there = share[target]
    edge_s = problem.edge_messages * np.einsum("ed,ed->e", latency[source], there)
    edge_s += problem.edge_bytes * np.einsum("ed,ed->e", pace[source], there)
    load = np.einsum("nd,nd->d", share, problem.compute_s)
    return State(problem, devices, share, report, load, edge_s, latency, pace)


def unit_share(state: State, rows: slice | Ints = slice(None)) -> Floats:
    """Share of each unit's groups on each device, `float64[u, d]`."""
    member = state.problem.member[rows]
    return (member @ state.share) / member.sum(axis=1, keepdims=True)


def allowed_moves(state: State, rows: slice | Ints = slice(None)) -> Bools:
    """Moves of whole units that change something and whose parameters and optimizer state fit, `bool[u, d]`."""
    problem = state.problem
    member = problem.member[rows]
    capacity = problem.clock.topology.memory_bytes
    there = state.share * problem.state_bytes[:, None]
    after = there.sum(axis=0) + (member @ problem.state_bytes)[:, None] - member @ there
    return (unit_share(state, rows) < 1 - 1e-9) & (after <= capacity)


def move_features(state: State, rows: slice | Ints = slice(None)) -> NDArray[np.float32]:
    """Features of moving each unit to each device, `float32[u, d, MOVE_FEATURES]`."""
    problem, report = state.problem, state.report
    member = problem.member[rows]
    step, capacity = report.step_time_s, problem.clock.topology.memory_bytes
    compute = member @ problem.compute_s
    there = member @ (state.share * problem.compute_s)
    load = state.load_s - there
    after = load + compute
    most = max(state.load_s.max(), 1e-30)
    others = np.broadcast_to(load[:, None, :], (*after.shape, after.shape[1])).copy()
    diagonal = np.arange(after.shape[1])
    others[:, diagonal, diagonal] = after
    near = problem.near_bytes[rows]
    transfer = problem.near_messages[rows] @ state.latency + near @ state.pace
    before = problem.touch[rows] @ state.edge_s
    share = unit_share(state, rows)
    kept = problem.state_bytes + 2 * problem.saved_bytes
    memory = report.peak_bytes + (member @ kept)[:, None] - member @ (state.share * kept[:, None])
    columns = [
        compute / step,
        after / step,
        after / most,
        np.log(np.maximum(others.max(axis=2), 1e-30) / most),
        (near @ state.share) / np.maximum(near.sum(axis=1, keepdims=True), 1e-30),
        transfer / step,
        (transfer - before[:, None]) / step,
        memory / capacity,
        share,
        there / step,
    ]
    return np.stack(columns, axis=2).clip(-_BOUND, _BOUND).astype(np.float32)


def device_features(state: State) -> NDArray[np.float32]:
    """`float32[d, DEVICE_FEATURES]`."""
    problem, report = state.problem, state.report
    capacity, step = problem.clock.topology.memory_bytes, report.step_time_s
    speed = 1.0 / np.maximum(problem.compute_s.sum(axis=0), 1e-30)
    held = (state.share * problem.state_bytes[:, None]).sum(axis=0)
    columns = [
        np.log(speed / speed.mean()),
        1.0 - report.peak_bytes / capacity,
        np.log10(capacity / max(problem.state_bytes.sum(), 1.0)),
        report.busy_s / step,
        report.waiting_s / step,
        report.transfer_s / step,
        held / capacity,
        state.share.mean(axis=0),
    ]
    return np.stack(columns, axis=1).clip(-_BOUND, _BOUND).astype(np.float32)


def link_features(state: State) -> NDArray[np.float32]:
    """Latency and time of a mean edge's bytes between two devices, for a step's messages, `float32[d, d, LINK_FEATURES]`."""
    problem, step = state.problem, state.report.step_time_s
    messages = problem.edge_messages.mean() if len(problem.edges) else 0.0
    volume = problem.edge_bytes.mean() if len(problem.edges) else 0.0
    seconds = np.stack([problem.latency_s * messages, problem.seconds_per_byte * volume], axis=2)
    return np.log1p(100 * (seconds / step).clip(0, 1e4)).astype(np.float32)


def group_features(state: State) -> NDArray[np.float32]:
    """`float32[n, GROUP_FEATURES]`."""
    problem, step = state.problem, state.report.step_time_s
    here = (state.share * problem.compute_s).sum(axis=1)
    transfer = np.bincount(problem.edges[:, 0], state.edge_s, problem.num_groups)
    transfer += np.bincount(problem.edges[:, 1], state.edge_s, problem.num_groups)
    moving = np.stack([here / step, transfer / step], axis=1).clip(0, _BOUND)
    return np.concatenate([problem.group_features, moving.astype(np.float32)], axis=1)


def edge_features(state: State) -> NDArray[np.float32]:
    """`float32[e, EDGE_FEATURES]`: share of all bytes, and transfer seconds relative to the step."""
    problem = state.problem
    volume = problem.edge_bytes / max(problem.edge_bytes.sum(), 1e-30) * max(1, len(problem.edges))
    columns = [np.log10(volume + 1e-3), state.edge_s / state.report.step_time_s]
    return np.stack(columns, axis=1).clip(-_BOUND, _BOUND).astype(np.float32)


def step_features(state: State, start_s: float, best_s: float, change: float, progress: float) -> NDArray[np.float32]:
    """What belongs to no group or device, `float32[STEP_FEATURES]`.

    Args:
        state: the current state.
        start_s: step time of the start.
        best_s: best step time so far.
        change: logarithm of the step time's change by the last move.
        progress: share of the episode that is over.
    """
    problem, report = state.problem, state.report
    step = report.step_time_s
    fastest = problem.compute_s.sum() / problem.num_devices
    features = [
        np.log(step / start_s),
        np.log(best_s / step),
        change,
        progress,
        np.log2(problem.clock.microbatches) / 3,
        float(not report.feasible),
        state.edge_s.sum() / step,
        state.load_s.max() / step,
        np.log(step / max(fastest, 1e-30)),
        problem.num_devices / 8,
    ]
    return np.array(features, np.float32).clip(-_BOUND, _BOUND)


def observe(state: State, unit: int, step: NDArray[np.float32], config: EnvConfig) -> Observation:
    """The padded observation of a state with `unit` to be moved or kept."""
    problem = state.problem
    n, e, d = problem.num_groups, len(problem.edges), problem.num_devices
    result: Observation = {key: np.zeros(shape, np.float32) for key, shape in _shapes(config).items()}
    result["groups"][:n] = group_features(state)
    result["group_mask"][:n] = 1.0
    result["devices"][:d] = device_features(state)
    result["device_mask"][:d] = 1.0
    result["links"][:d, :d] = link_features(state)
    result["placement"][:n, :d] = state.share
    result["edges"][:e] = problem.edges
    result["edge_features"][:e] = edge_features(state)
    result["edge_mask"][:e] = 1.0
    result["unit"][:n] = problem.member[unit]
    rows = np.array([unit])
    result["moves"][:d] = move_features(state, rows)[0]
    result["step"][:] = step
    result["action_mask"][0] = 1.0
    result["action_mask"][1 : d + 1] = allowed_moves(state, rows)[0]
    return result


@cache
def _shapes(config: EnvConfig) -> dict[str, tuple[int, ...]]:
    n, d, e = config.max_groups, config.max_devices, config.max_edges
    return {
        "groups": (n, GROUP_FEATURES),
        "group_mask": (n,),
        "devices": (d, DEVICE_FEATURES),
        "device_mask": (d,),
        "links": (d, d, LINK_FEATURES),
        "placement": (n, d),
        "edges": (e, 2),
        "edge_features": (e, EDGE_FEATURES),
        "edge_mask": (e,),
        "unit": (n,),
        "moves": (d, MOVE_FEATURES),
        "step": (STEP_FEATURES,),
        "action_mask": (d + 1,),
    }


def observation_space(config: EnvConfig) -> spaces.Dict:
    """The space of padded observations; see `PlacementEnv`."""
    boxes: dict[str, spaces.Space[Any]] = {}
    for key, shape in _shapes(config).items():
        low, high = (0.0, 1.0) if key in _SHARES else (-20.0, 20.0)
        if key == "edges":
            low, high = 0.0, float(max(1, config.max_groups - 1))
        boxes[key] = spaces.Box(low, high, shape, np.float32)
    return spaces.Dict(boxes)
