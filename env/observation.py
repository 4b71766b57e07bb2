"""What the agent sees: groups, devices, links and every move, in times relative to the current step."""

from functools import cache
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from .bounds_after import bounds_after
from .config import EnvConfig
from .flows import unit_flows
from .problem import GROUP_CONSTANTS
from .state import Floats, State, allowed_moves, unit_share

Observation = dict[str, NDArray[Any]]

GROUP_FEATURES = GROUP_CONSTANTS + 4
DEVICE_FEATURES = 9
LINK_FEATURES = 2
EDGE_FEATURES = 2
MOVE_FEATURES = 19
STEP_FEATURES = 14
ESTIMATE = 10
"""Column of the move features: log change of the estimated step time."""
MEASURED_OF_STEP, MEASURED_OF_DEVICES = (0, 1, 2), (3, 4, 5, 8)
"""Columns of the features of step and devices that only a measured step tells."""
_BOUND = 10.0
_SHARES = ("group_mask", "device_mask", "placement", "edge_mask", "units", "action_mask")


def move_features(state: State) -> NDArray[np.float32]:
    """Features of moving each unit to each device, `float32[u, d, MOVE_FEATURES]`."""
    problem, report, member = state.problem, state.report, state.member
    step, capacity = report.step_time_s, problem.clock.topology.memory_bytes
    compute = member @ problem.compute_s
    there = member @ (state.share * problem.compute_s)
    swap = state.swaps_with >= 0
    after = np.where(swap[:, None], compute, state.load_s - there + compute)
    most = max(state.load_s.max(), 1e-30)
    inside, share = member > 0, unit_share(state)
    flows = unit_flows(
        inside, problem.edges, problem.edge_bytes, problem.edge_messages, state.edge_s, state.latency, state.pace, state.share
    )  # fmt: skip
    kept = problem.state_bytes + 2 * problem.saved_bytes
    memory = (member @ kept)[:, None] + np.where(
        swap[:, None], 0.0, report.peak_bytes - member @ (state.share * kept[:, None])
    )
    now, then = state.bounds, bounds_after(problem.pipeline, state.home, inside, state.swaps_with)
    size = member.sum(axis=1, keepdims=True)
    columns = [
        compute / step,
        after / step,
        after / most,
        flows.near,
        flows.transfer_s / step,
        (flows.transfer_s - flows.touching_s[:, None]) / step,
        flows.messages / max(1.0, float(problem.edge_messages.max(initial=1.0))) / 4,
        memory / capacity,
        share,
        there / step,
        _log_ratio(then.estimate, now.estimate),
        _log_ratio(then.path, now.path),
        _log_ratio(then.load, now.load),
        _log_ratio(then.link, np.maximum(now.link, 1e-3 * step)),
        np.log(np.maximum(then.estimate, 1e-30) / step),
        (member * state.through_s).max(axis=1, keepdims=True) / max(float(now.path), 1e-30),
        size / problem.num_groups,
        (np.arange(len(member)) >= problem.num_units)[:, None] & ~swap[:, None],
        swap[:, None],
    ]
    features = np.empty((*share.shape, MOVE_FEATURES), np.float32)
    for place, column in enumerate(columns):
        features[:, :, place] = column
    return features.clip(-_BOUND, _BOUND, out=features)


def _log_ratio(after: Floats, before: Floats) -> Floats:
    return np.log(np.maximum(after, 1e-30) / np.maximum(before, 1e-30))


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
        report.busy_s / max(report.busy_s.max(), 1e-30),
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
    busy = state.report.busy_s / max(state.report.busy_s.max(), 1e-30)
    through = state.through_s / max(float(state.bounds.path), 1e-30)
    moving = np.stack([here / step, transfer / step, through, state.share @ busy], axis=1).clip(0, _BOUND)
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
        state.bounds.path / step,
        state.bounds.link / step,
        np.log(step / max(float(state.bounds.estimate), 1e-30)),
        float(problem.pipeline.steady),
    ]
    return np.array(features, np.float32).clip(-_BOUND, _BOUND)


def observe_state(state: State, step: NDArray[np.float32]) -> Observation:
    """The observation of a state without its moves, and without padding."""
    n, e, d = state.problem.num_groups, len(state.problem.edges), state.problem.num_devices
    return {
        "groups": group_features(state),
        "group_mask": np.ones(n, np.float32),
        "devices": device_features(state),
        "device_mask": np.ones(d, np.float32),
        "links": link_features(state),
        "placement": state.share.astype(np.float32),
        "edges": state.problem.edges.astype(np.float32),
        "edge_features": edge_features(state),
        "edge_mask": np.ones(e, np.float32),
        "step": step,
    }


def observe(state: State, step: NDArray[np.float32], config: EnvConfig) -> Observation:
    """The padded observation of a state, every move of every unit included."""
    result: Observation = {key: np.zeros(shape, np.float32) for key, shape in _shapes(config).items()}
    for key, value in observe_state(state, step).items():
        result[key][tuple(slice(size) for size in value.shape)] = value
    u, d = len(state.member), state.problem.num_devices
    result["units"][:u, : state.problem.num_groups] = state.member
    result["moves"][:u, :d] = move_features(state)
    result["action_mask"][:] = action_mask(state, config)
    return result


def action_mask(state: State, config: EnvConfig) -> NDArray[np.float32]:
    """1 for stopping and every allowed move `1 + unit * max_devices + device`, `float32[max_units * max_devices + 1]`."""
    allowed = np.zeros((config.max_units, config.max_devices), np.float32)
    allowed[: len(state.member), : state.problem.num_devices] = allowed_moves(state)
    return np.concatenate([np.ones(1, np.float32), allowed.ravel()])


@cache
def _shapes(config: EnvConfig) -> dict[str, tuple[int, ...]]:
    n, d, e, u = config.max_groups, config.max_devices, config.max_edges, config.max_units
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
        "units": (u, n),
        "moves": (u, d, MOVE_FEATURES),
        "step": (STEP_FEATURES,),
        "action_mask": (u * d + 1,),
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
