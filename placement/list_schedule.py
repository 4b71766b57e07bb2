"""The list scheduler: one training step, instruction by instruction, on devices and links.

Whenever a device is free it takes, of the instructions that are ready, a backward before a forward, an earlier microbatch
before a later one, and the one with most work behind it. A stage may run ahead of its own backward by at most a few
microbatches (1F1B's bound: one for each device boundary between it and the loss, and one more to cover the transfers).
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from .stages import Bools, Floats, Ints, Stages

FORWARD, BACKWARD = 0, 1

# For functions that allocate nothing: without counting references to arrays they run about four times as fast.
_without_references: Any = {"_nrt": False}
_hot = njit(cache=True, **_without_references)


class StageCosts(NamedTuple):
    """Costs of every stage on its device for one full microbatch (`s` stages).

    Attributes:
        forward: seconds, `float64[s]`.
        backward: seconds, 0 where there is none.
        live_bytes: bytes held from a stage's forward to its backward, received inputs included.
        update: seconds of the optimizer on each device, `float64[d]`.
        latency: seconds per message, `float64[d, d]`.
        seconds_per_byte: `float64[d, d]`.
        fraction: size of each microbatch relative to a full one, `float64[m]`.
    """

    forward: Floats
    backward: Floats
    live_bytes: Floats
    update: Floats
    latency: Floats
    seconds_per_byte: Floats
    fraction: Floats


class Trace(NamedTuple):
    """When everything happens.

    Attributes:
        start: `float64[s, m, 2]`, seconds at which forward (0) and backward (1) begin; -1 where there is none.
        end: the same for their ends.
        message_start: `float64[len(succ) + len(grad), m]`, when each message begins to travel; -1 where there is none.
        message_end: when it has arrived.
        busy: seconds each device computes, `float64[d]`.
        transfer: seconds each device's outgoing links are taken.
        peak_live_bytes: most activation bytes held at once on each device.
        order: position of every instruction in the order in which they start, `int64[s, m, 2]`; -1 where there is none.
        step_time: seconds until the last update has ended.
    """

    start: Floats
    end: Floats
    message_start: Floats
    message_end: Floats
    busy: Floats
    transfer: Floats
    peak_live_bytes: Floats
    order: Ints
    step_time: float


@njit(cache=True)
def list_schedule(stages: Stages, costs: StageCosts, run_ahead: int) -> Trace:
    """Schedule one step; every instruction, link and byte is accounted for."""
    num_stages, num_micro = stages.device.shape[0], costs.fraction.shape[0]
    num_devices = costs.update.shape[0]
    num_messages = stages.succ.shape[0] + stages.grad.shape[0]
    trace = Trace(
        np.full((num_stages, num_micro, 2), -1.0),
        np.full((num_stages, num_micro, 2), -1.0),
        np.full((num_messages, num_micro), -1.0),
        np.full((num_messages, num_micro), -1.0),
        np.zeros(num_devices),
        np.zeros(num_devices),
        np.zeros(num_devices),
        np.full((num_stages, num_micro, 2), -1),
        0.0,
    )
    state = _state(stages, costs, run_ahead)
    step_time = _run(stages, costs, state, trace)
    return Trace(
        trace.start, trace.end, trace.message_start, trace.message_end,
        trace.busy, trace.transfer, trace.peak_live_bytes, trace.order, step_time,
    )  # fmt: skip


class _Heap(NamedTuple):
    """A binary heap of (time, code), the smaller code first among equal times."""

    time: Floats
    code: Ints
    size: Ints


class _State(NamedTuple):
    events: _Heap
    ready_key: Floats  # one small heap a device, in the slice that `ready_start` gives it
    ready_code: Ints
    ready_start: Ints
    ready_size: Ints
    idle: Bools
    touched: Bools  # [d] whether something has changed for an idle device
    wait: Ints  # [s, m, 2] inputs that an instruction still waits for
    next: Ints  # [s, 2] next microbatch to offer
    offered: Bools  # [s, 2] whether that one is in the ready heap or running
    done_backward: Ints  # [s]
    limit: Ints  # [s] forwards allowed ahead of backwards
    key: Floats  # [s, 2] urgency within a microbatch, in [0, 1)
    link_free: Floats  # [d, d]
    live: Floats  # [d]
    last_end: Floats  # [d]
    started: Ints  # [1] instructions started so far


@njit(cache=True)
def _state(stages: Stages, costs: StageCosts, run_ahead: int) -> _State:
    num_stages, num_micro = stages.device.shape[0], costs.fraction.shape[0]
    num_devices = costs.update.shape[0]
    wait = np.empty((num_stages, num_micro, 2), np.int64)
    for stage in range(num_stages):
        wait[stage, :, FORWARD] = stages.num_pred[stage]
        wait[stage, :, BACKWARD] = stages.num_grad_pred[stage] + 1
    per_device = np.zeros(num_devices + 1, np.int64)
    for stage in range(num_stages):
        per_device[stages.device[stage] + 1] += 2
    ready_start = np.cumsum(per_device)
    capacity = num_devices + (stages.succ.shape[0] + stages.grad.shape[0]) * num_micro + 1
    limit, key = _limits_and_keys(stages, costs, run_ahead)
    return _State(
        _Heap(np.empty(capacity), np.empty(capacity, np.int64), np.zeros(1, np.int64)),
        np.empty(2 * num_stages),
        np.empty(2 * num_stages, np.int64),
        ready_start,
        np.zeros(num_devices, np.int64),
        np.ones(num_devices, np.bool_),
        np.ones(num_devices, np.bool_),
        wait,
        np.zeros((num_stages, 2), np.int64),
        np.zeros((num_stages, 2), np.bool_),
        np.zeros(num_stages, np.int64),
        limit,
        key,
        np.zeros((num_devices, num_devices)),
        np.zeros(num_devices),
        np.zeros(num_devices),
        np.zeros(1, np.int64),
    )


@njit(cache=True)
def _limits_and_keys(stages: Stages, costs: StageCosts, run_ahead: int) -> tuple[Ints, Floats]:
    num_stages, num_micro = stages.device.shape[0], costs.fraction.shape[0]
    hops = np.zeros(num_stages, np.int64)
    behind = np.zeros((num_stages, 2))
    for stage in range(num_stages - 1, -1, -1):
        for j in range(stages.succ_start[stage], stages.succ_start[stage + 1]):
            other = stages.succ[j]
            crossing = stages.device[other] != stages.device[stage]
            hops[stage] = max(hops[stage], hops[other] + crossing)
            behind[stage, FORWARD] = max(behind[stage, FORWARD], behind[other, FORWARD])
        behind[stage, FORWARD] += costs.forward[stage]
    for stage in range(num_stages):
        for j in range(stages.grad_start[stage], stages.grad_start[stage + 1]):
            other = stages.grad[j]
            behind[stage, BACKWARD] = max(behind[stage, BACKWARD], behind[other, BACKWARD])
        behind[stage, BACKWARD] += costs.backward[stage]
    key = np.empty((num_stages, 2))
    for which in range(2):
        most = behind[:, which].max() + 1e-30
        key[:, which] = 0.999 * (1.0 - behind[:, which] / most)
    return np.minimum(hops + 1 + run_ahead, num_micro), key


@_hot
def _less(time: Floats, code: Ints, a: int, b: int) -> bool:
    return time[a] < time[b] or (time[a] == time[b] and code[a] < code[b])


@_hot
def _swap(time: Floats, code: Ints, a: int, b: int) -> None:
    time[a], time[b] = time[b], time[a]
    code[a], code[b] = code[b], code[a]


@_hot
def _sift_up(time: Floats, code: Ints, base: Any, child: Any) -> None:
    while child > 0:
        parent = (child - 1) // 2
        if not _less(time, code, base + child, base + parent):
            break
        _swap(time, code, base + child, base + parent)
        child = parent


@_hot
def _sift_down(time: Floats, code: Ints, base: Any, size: Any) -> None:
    parent = 0
    while True:
        child = 2 * parent + 1
        if child >= size:
            break
        if child + 1 < size and _less(time, code, base + child + 1, base + child):
            child += 1
        if not _less(time, code, base + child, base + parent):
            break
        _swap(time, code, base + child, base + parent)
        parent = child


@_hot
def _push(heap: _Heap, time: Any, code: Any) -> None:
    size = heap.size[0]
    heap.time[size] = time
    heap.code[size] = code
    heap.size[0] = size + 1
    _sift_up(heap.time, heap.code, 0, size)


@_hot
def _pop(heap: _Heap) -> int:
    code = heap.code[0]
    size = heap.size[0] - 1
    heap.time[0] = heap.time[size]
    heap.code[0] = heap.code[size]
    heap.size[0] = size
    _sift_down(heap.time, heap.code, 0, size)
    return code


@_hot
def _offer(stage: int, stages: Stages, state: _State, num_micro: int) -> None:
    """Put the stage's next forward and backward into its device's ready heap if nothing holds them back."""
    for which in range(2):
        if which == BACKWARD and not stages.has_backward[stage]:
            continue
        micro = state.next[stage, which]
        if micro >= num_micro or state.offered[stage, which] or state.wait[stage, micro, which] > 0:
            continue
        if which == FORWARD and stages.has_backward[stage]:
            if micro - state.done_backward[stage] >= state.limit[stage]:
                continue
            urgency = 1.0 * num_micro + micro
        else:
            urgency = 1.0 * micro
        state.offered[stage, which] = True
        device = stages.device[stage]
        start, size = state.ready_start[device], state.ready_size[device]
        state.ready_key[start + size] = urgency + state.key[stage, which]
        state.ready_code[start + size] = (stage * num_micro + micro) * 2 + which
        state.ready_size[device] = size + 1
        _sift_up(state.ready_key, state.ready_code, start, size)


@_hot
def _dispatch(device: int, now: float, stages: Stages, costs: StageCosts, state: _State, trace: Trace) -> None:
    """Start the most urgent ready instruction if the device is free."""
    if not state.idle[device] or state.ready_size[device] == 0:
        return
    num_micro = costs.fraction.shape[0]
    start = state.ready_start[device]
    code = state.ready_code[start]
    size = state.ready_size[device] - 1
    _swap(state.ready_key, state.ready_code, start, start + size)
    state.ready_size[device] = size
    _sift_down(state.ready_key, state.ready_code, start, size)

    which, micro, stage = code % 2, (code // 2) % num_micro, code // 2 // num_micro
    seconds = (costs.backward[stage] if which == BACKWARD else costs.forward[stage]) * costs.fraction[micro]
    trace.order[stage, micro, which] = state.started[0]
    state.started[0] += 1
    trace.start[stage, micro, which] = now
    trace.end[stage, micro, which] = now + seconds
    trace.busy[device] += seconds
    state.idle[device] = False
    if which == FORWARD:
        state.live[device] += costs.live_bytes[stage] * costs.fraction[micro]
        trace.peak_live_bytes[device] = max(trace.peak_live_bytes[device], state.live[device])
    _push(state.events, now + seconds, code)


@_hot
def _finish(code: int, now: float, stages: Stages, costs: StageCosts, state: _State, trace: Trace) -> None:
    """An instruction has ended: free the device, wake local stages, send messages."""
    num_micro = costs.fraction.shape[0]
    which, micro, stage = code % 2, (code // 2) % num_micro, code // 2 // num_micro
    device = stages.device[stage]
    state.idle[device] = True
    state.last_end[device] = now
    state.touched[device] = True
    state.next[stage, which] += 1
    state.offered[stage, which] = False
    if which == BACKWARD:
        state.done_backward[stage] += 1
    else:
        state.wait[stage, micro, BACKWARD] -= 1
    if which == BACKWARD or not stages.has_backward[stage]:
        state.live[device] -= costs.live_bytes[stage] * costs.fraction[micro]
    _offer(stage, stages, state, num_micro)
    starts, others = (stages.succ_start, stages.succ) if which == FORWARD else (stages.grad_start, stages.grad)
    bytes_of = stages.out_bytes if which == FORWARD else stages.grad_bytes
    offset = 0 if which == FORWARD else stages.succ.shape[0]
    previous = device
    for j in range(starts[stage], starts[stage + 1]):
        other = others[j]
        where = stages.device[other]
        if where == device:
            state.wait[other, micro, which] -= 1
            _offer(other, stages, state, num_micro)
        elif where != previous:
            seconds = costs.latency[device, where]
            seconds += bytes_of[j] * costs.fraction[micro] * costs.seconds_per_byte[device, where]
            begin = max(now, state.link_free[device, where])
            state.link_free[device, where] = begin + seconds
            trace.transfer[device] += seconds
            trace.message_start[offset + j, micro] = begin
            trace.message_end[offset + j, micro] = begin + seconds
            _push(state.events, begin + seconds, -1 - ((offset + j) * num_micro + micro))
        previous = where


@_hot
def _arrive(code: int, stages: Stages, state: _State, num_micro: int) -> None:
    """A message has arrived: wake the stages of its device that read from it."""
    message, micro = code // num_micro, code % num_micro
    which = FORWARD if message < stages.succ.shape[0] else BACKWARD
    j = message if which == FORWARD else message - stages.succ.shape[0]
    others = stages.succ if which == FORWARD else stages.grad
    starts = stages.succ_start if which == FORWARD else stages.grad_start
    end = starts[np.searchsorted(starts, j, side="right")]
    where = stages.device[others[j]]
    state.touched[where] = True
    while j < end and stages.device[others[j]] == where:
        state.wait[others[j], micro, which] -= 1
        _offer(others[j], stages, state, num_micro)
        j += 1


@_hot
def _run(stages: Stages, costs: StageCosts, state: _State, trace: Trace) -> float:
    """Play the step through, event by event; returns its end."""
    num_micro, num_devices = costs.fraction.shape[0], costs.update.shape[0]
    for stage in range(stages.device.shape[0]):
        _offer(stage, stages, state, num_micro)
    now = 0.0
    while True:
        for device in range(num_devices):
            if state.touched[device]:
                state.touched[device] = False
                _dispatch(device, now, stages, costs, state, trace)
        if state.events.size[0] == 0:
            break
        now = state.events.time[0]
        while state.events.size[0] > 0 and state.events.time[0] == now:
            code = _pop(state.events)
            if code < 0:
                _arrive(-code - 1, stages, state, num_micro)
            else:
                _finish(code, now, stages, costs, state, trace)
    step_time = 0.0
    for device in range(num_devices):
        step_time = max(step_time, state.last_end[device] + costs.update[device])
        trace.busy[device] += costs.update[device]
    return step_time
