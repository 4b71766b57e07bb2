"""The list scheduler: one training step, instruction by instruction, on devices and links.

Whenever a device is free it takes, of the instructions that are ready, a backward before a forward, an earlier microbatch
before a later one, and the one with most work behind it. A stage may run ahead of its own backward by at most a few
microbatches (1F1B's bound: one for each device boundary between it and the loss, and one more to cover the transfers).
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from .compiled import hot, inlined
from .queues import ENTRY, Records, first_due, pop, push, set_due
from .schedule_records import DEVICE, EDGE, INSTRUCTION, KIND
from .stage_costs import StageCosts
from .stages import Floats, Ints, Stages

FORWARD, BACKWARD = 0, 1


class Trace(NamedTuple):
    """When everything happens.

    Attributes:
        start: `float64[s, m, 2]`, seconds at which forward (0) and backward (1) begin; -1 where there is none.
        end: the same for their ends.
        message_start: `float64[len(succ) + len(grad), m]`, when each message begins to travel; -1 where there is none.
        message_end: when it has arrived.
        busy: seconds each device computes, `float64[d]`.
        transfer: seconds each device's outgoing links are taken.
        peak_live_bytes: most bytes held at once on each device: of passes under way what they save and have received, and
            gradients that wait there for the backward of another stage; and on top the most that messages take which have
            been sent to it and not yet been read.
        update_start: seconds at which each device's optimizer update begins, `float64[d]`.
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
    update_start: Floats
    order: Ints
    step_time: float


@njit(cache=True)
def list_schedule(stages: Stages, costs: StageCosts, run_ahead: int) -> Trace:
    """Schedule one step; every instruction, link and byte is accounted for."""
    num_stages, num_micro = stages.device.shape[0], costs.fraction.shape[0]
    num_messages = stages.succ.shape[0] + stages.grad.shape[0]
    trace = _trace((num_stages, num_micro, 2), (num_messages, num_micro), costs.update.shape[0])
    step_time = _run(costs, _state(stages, costs, run_ahead), trace, True)
    return Trace(
        trace.start, trace.end, trace.message_start, trace.message_end,
        trace.busy, trace.transfer, trace.peak_live_bytes, trace.update_start, trace.order, step_time,
    )  # fmt: skip


@njit(cache=True)
def step_time_and_memory(stages: Stages, costs: StageCosts, run_ahead: int) -> tuple[float, Floats]:
    """`Trace.step_time` and `Trace.peak_live_bytes` alone, which is quicker."""
    trace = _trace((0, 0, 0), (0, 0), costs.update.shape[0])
    step_time = _run(costs, _state(stages, costs, run_ahead), trace, False)
    return step_time, trace.peak_live_bytes


@njit(cache=True)
def _trace(instructions: tuple[int, int, int], messages: tuple[int, int], num_devices: int) -> Trace:
    return Trace(
        np.full(instructions, -1.0),
        np.full(instructions, -1.0),
        np.full(messages, -1.0),
        np.full(messages, -1.0),
        np.zeros(num_devices),
        np.zeros(num_devices),
        np.zeros(num_devices),
        np.zeros(num_devices),
        np.full(instructions, -1),
        0.0,
    )


class _State(NamedTuple):
    """How far the step has come."""

    kinds: Records  # [2 s]
    edges: Records  # [succ and grad]
    instructions: Records  # [2 s, m]
    devices: Records  # [d]
    ready: Records  # [2 s] a heap a device, the most urgent first
    coming: Records  # [2 s] a heap a device, the next to arrive first
    due: Floats  # [2 leaves] tournament of when each device has something to do; the winner's time is at 1
    woken: Ints  # [d] devices that may start something now
    channel_free: Floats
    sent: Floats  # [1] when the last message set out


@njit(cache=True)
def _state(stages: Stages, costs: StageCosts, run_ahead: int) -> _State:
    num_stages, num_micro, num_devices = stages.device.shape[0], costs.fraction.shape[0], costs.update.shape[0]
    kinds, edges = np.empty(2 * num_stages, KIND), np.empty(stages.succ.shape[0] + stages.grad.shape[0], EDGE)
    _fill_kinds(stages, costs, num_micro, kinds)
    _fill_edges(stages, kinds, edges)
    _limits_and_keys(stages, kinds, edges, run_ahead, num_micro)
    instructions = np.empty((2 * num_stages, num_micro), INSTRUCTION)
    devices = np.zeros(num_devices, DEVICE)
    slots = np.zeros(num_devices + 1, np.int64)
    for stage in range(num_stages):
        slots[stages.device[stage] + 1] += 2
        for micro in range(num_micro):
            instructions[2 * stage, micro].missing = stages.num_pred[stage]
            instructions[2 * stage + 1, micro].missing = stages.num_grad_pred[stage] + 1
            instructions[2 * stage, micro].arrived = instructions[2 * stage + 1, micro].arrived = 0.0
    for device in range(num_devices):
        slots[device + 1] += slots[device]
        devices[device].slot, devices[device].running, devices[device].asleep = slots[device], -1, 1
    leaves = 1
    while leaves < num_devices:
        leaves *= 2
    return _State(
        kinds,
        edges,
        instructions,
        devices,
        np.empty(2 * num_stages, ENTRY),
        np.empty(2 * num_stages, ENTRY),
        np.full(2 * leaves, np.inf),
        np.zeros(num_devices, np.int64),
        np.zeros(costs.num_channels),
        np.zeros(1),
    )


@hot
def _fill_kinds(stages: Stages, costs: StageCosts, num_micro: int, kinds: Records) -> None:
    offset = stages.succ.shape[0]
    for stage in range(stages.device.shape[0]):
        backward = stages.has_backward[stage]
        for which in range(2):
            kind = kinds[2 * stage + which]
            kind.device = stages.device[stage]
            kind.exists = which == FORWARD or backward
            kind.seconds = costs.backward[stage] if which == BACKWARD else costs.forward[stage]
            kind.holds = costs.live_bytes[stage] if which == FORWARD else 0.0
            kind.frees = costs.live_bytes[stage] if which == BACKWARD or not backward else 0.0
            kind.first = stages.succ_start[stage] if which == FORWARD else offset + stages.grad_start[stage]
            kind.last = stages.succ_start[stage + 1] if which == FORWARD else offset + stages.grad_start[stage + 1]
            kind.limit = num_micro
            kind.reads = 0.0
            kind.next = kind.offered = 0


@hot
def _fill_edges(stages: Stages, kinds: Records, edges: Records) -> None:
    offset = stages.succ.shape[0]
    for j in range(edges.shape[0]):
        forward = j < offset
        other = stages.succ[j] if forward else stages.grad[j - offset]
        edges[j].kind = 2 * other + (FORWARD if forward else BACKWARD)
        edges[j].device = stages.device[other]
        edges[j].bytes = stages.out_bytes[j] if forward else stages.grad_bytes[j - offset]
        edges[j].part = stages.out_bytes[j] if forward else stages.grad_parts[j - offset]
    for number in range(kinds.shape[0]):
        for j in range(kinds[number].first, kinds[number].last):
            reader = kinds[edges[j].kind]
            if reader.device == kinds[number].device:
                reader.frees += edges[j].part
            else:
                reader.reads += edges[j].part


@njit(cache=True)
def _limits_and_keys(stages: Stages, kinds: Records, edges: Records, run_ahead: int, num_micro: int) -> None:
    """How far each forward may run ahead (a device boundary to the loss allows one more), and what is urgent."""
    num_stages = stages.device.shape[0]
    hops = np.zeros(num_stages, np.int64)
    behind = np.zeros(2 * num_stages)
    for stage in range(num_stages - 1, -1, -1):
        kind = kinds[2 * stage]
        for j in range(kind.first, kind.last):
            other = edges[j].kind
            hops[stage] = max(hops[stage], hops[other // 2] + (edges[j].device != kind.device))
            behind[2 * stage] = max(behind[2 * stage], behind[other])
        behind[2 * stage] += kind.seconds
        if stages.has_backward[stage]:
            kind.limit = min(hops[stage] + 1 + run_ahead, num_micro)
    for stage in range(num_stages):
        kind = kinds[2 * stage + 1]
        for j in range(kind.first, kind.last):
            behind[2 * stage + 1] = max(behind[2 * stage + 1], behind[edges[j].kind])
        behind[2 * stage + 1] += kind.seconds
    most = np.full(2, 1e-30)
    for number in range(2 * num_stages):
        most[number % 2] = max(most[number % 2], behind[number])
    for number in range(2 * num_stages):
        # Of a stage with a backward, a forward comes after every backward.
        later = num_micro if number % 2 == FORWARD and stages.has_backward[number // 2] else 0
        kinds[number].key = later + 0.999 * (1.0 - behind[number] / most[number % 2])


@inlined
def _offer(number: int, now: float, state: _State) -> None:
    """Let a kind's next instruction start as soon as its inputs are there, unless something holds it back."""
    kind = state.kinds[number]
    micro = kind.next
    if kind.offered or not kind.exists or micro >= state.instructions.shape[1]:
        return
    if state.instructions[number, micro].missing > 0:
        return
    if number % 2 == FORWARD and micro - state.kinds[number + 1].next >= kind.limit:
        return
    kind.offered = 1
    device, time = state.devices[kind.device], state.instructions[number, micro].arrived
    if time <= now:
        time = now
        push(state.ready, device.slot, device.ready, kind.key + micro, number)
        device.ready += 1
    else:
        push(state.coming, device.slot, device.coming, time, number)
        device.coming += 1
    if device.asleep and time < state.due[state.due.shape[0] // 2 + kind.device]:
        set_due(state.due, kind.device, time)


@inlined
def _dispatch(name: int, now: float, fraction: Floats, state: _State) -> int:
    """The most urgent kind that is ready on a device, -1 if there is none; it then sleeps until there will be one."""
    device = state.devices[name]
    while device.coming > 0 and state.coming[device.slot].time <= now:
        number = pop(state.coming, device.slot, device.coming)
        device.coming -= 1
        kind = state.kinds[number]
        push(state.ready, device.slot, device.ready, kind.key + kind.next, number)
        device.ready += 1
    if device.ready == 0:
        device.asleep = 1
        if device.coming > 0:
            set_due(state.due, name, state.coming[device.slot].time)
        return -1
    number = pop(state.ready, device.slot, device.ready)
    kind = state.kinds[number]
    device.ready -= 1
    device.running = number
    device.live += kind.holds * fraction[kind.next]
    device.unread -= kind.reads * fraction[kind.next]
    set_due(state.due, name, now + kind.seconds * fraction[kind.next])
    return number


@inlined
def _finish(name: int, now: float, costs: StageCosts, state: _State, trace: Trace, record: bool) -> None:
    """An instruction has ended: wake local stages, send messages."""
    device = state.devices[name]
    number = device.running
    kind = state.kinds[number]
    micro = kind.next
    device.running = -1
    device.last_end = now
    device.live -= kind.frees * costs.fraction[micro]
    kind.next += 1
    kind.offered = 0
    if number % 2 == FORWARD:
        own = state.instructions[number + 1, micro]
        own.missing -= 1
        own.arrived = max(own.arrived, now)
    previous, arrival = name, now
    # Two more than the readers: the next instruction of this kind, and of the stage's other direction.
    for j in range(kind.first - 2, kind.last):
        other = number if j == kind.first - 2 else number ^ 1
        if j >= kind.first:
            edge = state.edges[j]
            other = edge.kind
            part = edge.part * costs.fraction[micro]
            if edge.device == name:
                device.live += part
            else:
                _deliver(edge.device, part, state)
            if edge.device != previous:
                previous, arrival = edge.device, now
                if edge.device != name:
                    size = edge.bytes * costs.fraction[micro]
                    arrival = _send(name, edge.device, size, now, costs, state)
                    trace.transfer[name] += arrival - state.sent[0]
                    if record:
                        trace.message_start[j, micro], trace.message_end[j, micro] = state.sent[0], arrival
            reader = state.instructions[other, micro]
            reader.missing -= 1
            reader.arrived = max(reader.arrived, arrival)
        _offer(other, now, state)


@inlined
def _deliver(name: int, size: float, state: _State) -> None:
    """Bytes are on their way to a device and take room there until they are read."""
    device = state.devices[name]
    device.unread += size
    device.most_unread = max(device.most_unread, device.unread)


@inlined
def _send(source: int, target: int, size: float, now: float, costs: StageCosts, state: _State) -> float:
    """A message sets out when every channel of its link is free, and takes them all; returns when it has arrived."""
    pair = source * state.devices.shape[0] + target
    begin = now
    for place in range(costs.channel_start[pair], costs.channel_start[pair + 1]):
        begin = max(begin, state.channel_free[costs.channels[place]])
    state.sent[0] = begin
    begin += costs.latency[source, target] + size * costs.seconds_per_byte[source, target]
    for place in range(costs.channel_start[pair], costs.channel_start[pair + 1]):
        state.channel_free[costs.channels[place]] = begin
    return begin


@hot
def _run(costs: StageCosts, state: _State, trace: Trace, record: bool) -> float:
    """Play the step through; returns its end."""
    for number in range(0, state.kinds.shape[0], 2):
        _offer(number, 0.0, state)
    started = 0
    while state.due[1] < np.inf:
        now, woken = state.due[1], 0
        # Everything that ends now ends before anything starts.
        while state.due[1] == now:
            name = first_due(state.due)
            set_due(state.due, name, np.inf)
            state.devices[name].asleep = 0
            state.woken[woken] = name
            woken += 1
            if state.devices[name].running >= 0:
                _finish(name, now, costs, state, trace, record)
        for place in range(woken):
            name = state.woken[place]
            number = _dispatch(name, now, costs.fraction, state)
            if number >= 0:
                micro = state.kinds[number].next
                seconds = state.kinds[number].seconds * costs.fraction[micro]
                trace.busy[name] += seconds
                trace.peak_live_bytes[name] = max(trace.peak_live_bytes[name], state.devices[name].live)
                if record:
                    trace.order[number // 2, micro, number % 2] = started
                    trace.start[number // 2, micro, number % 2] = now
                    trace.end[number // 2, micro, number % 2] = now + seconds
                    started += 1
    step_time = 0.0
    for name in range(state.devices.shape[0]):
        trace.update_start[name] = _update_start(name, costs, state)
        step_time = max(step_time, trace.update_start[name] + costs.update[name])
        trace.busy[name] += costs.update[name]
        trace.peak_live_bytes[name] += state.devices[name].most_unread
    return step_time


@inlined
def _update_start(name: int, costs: StageCosts, state: _State) -> float:
    """When a device has done its passes; with clipping, if it updates anything, when it has heard of the last pass of all."""
    start = state.devices[name].last_end
    if costs.clipping and costs.update[name] > 0:
        for other in range(state.devices.shape[0]):
            start = max(start, state.devices[other].last_end + costs.latency[other, name])
    return start
