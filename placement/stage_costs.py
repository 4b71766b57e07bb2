"""Costs of the ops of a graph, as the compiled simulator reads them, and their sums over the stages of a placement."""

from typing import NamedTuple

import numpy as np
from numba import njit

from .costs import Costs, Floats, Ints
from .graph import Graph
from .plain_arrays import plain
from .stages import Stages
from .topology import Topology


class OpCosts(NamedTuple):
    """What one microbatch of every op costs on every class of devices, and what is between the devices.

    Columns are those of `Costs`, of `Graph` and of `Topology`, where they are described.
    """

    forward: Floats
    backward: Floats
    update: Floats
    device_class: Ints
    overhead: Floats
    message: Floats
    message_per_byte: Floats
    state_bytes: Floats
    saved_bytes: Floats
    working_bytes: Floats
    memory_bytes: Floats
    latency: Floats
    seconds_per_byte: Floats
    channel_start: Ints
    channels: Ints
    num_channels: int
    fraction: Floats
    clipping: bool


class StageCosts(NamedTuple):
    """Costs of every stage on its device for one full microbatch (`s` stages).

    Attributes:
        forward: seconds, `float64[s]`.
        backward: seconds, 0 where there is none.
        live_bytes: bytes held from a stage's forward to its backward, received inputs included.
        working_bytes: bytes of each device besides: what its largest op works in, `float64[d]`.
        update: seconds of the optimizer on each device, `float64[d]`.
        latency: seconds per message, `float64[d, d]`.
        seconds_per_byte: `float64[d, d]`.
        channel_start: what a message from device `a` to `b` takes is `channels[channel_start[a * d + b]:...]`.
        channels: numbers of channels, fewer than `num_channels`.
        num_channels: how many channels there are.
        fraction: size of each microbatch relative to a full one, `float64[m]`.
        clipping: whether every update waits for the last pass of all devices.
    """

    forward: Floats
    backward: Floats
    live_bytes: Floats
    working_bytes: Floats
    update: Floats
    latency: Floats
    seconds_per_byte: Floats
    channel_start: Ints
    channels: Ints
    num_channels: int
    fraction: Floats
    clipping: bool


def op_costs(
    graph: Graph,
    topology: Topology,
    costs: Costs,
    fraction: Floats,
    clipping: bool = False,
) -> OpCosts:
    """The compiled form of what a clock knows.

    Args:
        graph: the ops.
        topology: devices and links.
        costs: of the graph on the topology.
        fraction: size of each microbatch relative to a full one, `float64[m]`.
        clipping: whether gradients are clipped by their common norm.
    """
    start, channels = topology.channels
    known = OpCosts(
        forward=costs.forward_s,
        backward=costs.backward_s,
        update=costs.update_s,
        device_class=costs.device_class.astype(np.int64),
        overhead=costs.overhead_s,
        message=topology.message_s,
        message_per_byte=topology.message_s_per_byte,
        state_bytes=costs.state_bytes,
        saved_bytes=graph.saved_bytes,
        working_bytes=costs.working_bytes,
        memory_bytes=topology.memory_bytes,
        latency=topology.latency_s,
        seconds_per_byte=topology.seconds_per_byte,
        channel_start=start,
        channels=channels,
        num_channels=topology.num_channels,
        fraction=fraction,
        clipping=clipping,
    )
    return plain(known)


@njit(cache=True)
def sum_over_stages(stages: Stages, devices: Ints, ops: OpCosts) -> StageCosts:
    """Costs of the ops, summed over each stage; what arrives for a stage is held with what it saves."""
    num_stages, num_devices = stages.device.shape[0], ops.memory_bytes.shape[0]
    forward, backward, live = np.zeros(num_stages), np.zeros(num_stages), np.zeros(num_stages)
    update, working = np.zeros(num_devices), np.zeros(num_devices)
    for op in range(devices.shape[0]):
        stage, device = stages.stage_of[op], devices[op]
        column = ops.device_class[device]
        forward[stage] += ops.forward[op, column]
        backward[stage] += ops.backward[op, column]
        live[stage] += ops.saved_bytes[op]
        update[device] += ops.update[op, column]
        working[device] = max(working[device], ops.working_bytes[op])
    for stage in range(num_stages):
        overhead = ops.overhead[stages.device[stage]]
        forward[stage] += overhead
        backward[stage] = backward[stage] + overhead if stages.has_backward[stage] else 0.0
    # A message is charged to the first stage that it is for.
    for j in range(stages.succ.shape[0]):
        live[stages.succ[j]] += stages.out_bytes[j]
    if ops.message.any() or ops.message_per_byte.any():
        _add_messages(stages.succ_start, stages.succ, stages.out_bytes, stages.device, ops, forward)
        _add_messages(stages.grad_start, stages.grad, stages.grad_bytes, stages.device, ops, backward)
    return StageCosts(
        forward, backward, live, working, update, ops.latency, ops.seconds_per_byte,
        ops.channel_start, ops.channels, ops.num_channels, ops.fraction, ops.clipping,
    )  # fmt: skip


@njit(cache=True)
def _add_messages(start: Ints, others: Ints, sizes: Floats, device: Ints, ops: OpCosts, seconds: Floats) -> None:
    """Add to the seconds of every stage what its messages cost the two devices themselves."""
    for stage in range(device.shape[0]):
        previous = device[stage]
        for j in range(start[stage], start[stage + 1]):
            where = device[others[j]]
            if where != previous and where != device[stage]:
                own = device[stage]
                seconds[stage] += ops.message[own] + sizes[j] * ops.message_per_byte[own]
                seconds[others[j]] += ops.message[where] + sizes[j] * ops.message_per_byte[where]
            previous = where


@njit(cache=True)
def overflow(devices: Ints, live_bytes: Floats, ops: OpCosts) -> float:
    """Bytes by which the tightest device overflows, 0 if everything fits; `live_bytes` is each device's peak."""
    held = live_bytes - ops.memory_bytes
    for op in range(devices.shape[0]):
        held[devices[op]] += ops.state_bytes[op]
    return max(0.0, held.max())
