"""What a placement of a `Workload` is worth: `max_load` and `latency`, as the benchmark's authors define them.

Tarnawski et al., "Efficient Algorithms for Device Placement of DNN Graph Operators" (NeurIPS 2020), sections 3 and 4. An
accelerator receives each output it needs once, and sends each output that is needed elsewhere once, through host memory;
the CPUs receive and send for free.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .compiled import hot
from .errors import SegueError
from .workload import CPU, Floats, Flow, Ints, Workload

# Sizes are sums of floats: what exceeds the memory by rounding alone does not count.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Score:
    """The value of a placement.

    Attributes:
        value_ms: the objective in milliseconds; infinite for the latency of accelerators that wait for each other.
        reasons: why the placement is not allowed, a sentence each; empty if it is.
    """

    value_ms: float
    reasons: tuple[str, ...]

    @property
    def feasible(self) -> bool:
        """Whether the placement is allowed."""
        return not self.reasons


def max_load(workload: Workload, devices: Ints) -> Score:
    """Steady-state time per sample: the load of the busiest device.

    Args:
        workload: what was placed.
        devices: device of every node, 0 for the CPUs, `int64[n]`.

    Returns:
        The value in milliseconds, and the reasons why the placement is not allowed: too many accelerators, sizes that do
        not fit, a node on an accelerator that cannot run it, a colour class that is split.

    Raises:
        SegueError: unless there is one device >= 0 for every node.
    """
    devices = _checked(workload, devices)
    return Score(float(device_loads(workload, devices).max()), _reasons(workload, devices))


def latency(workload: Workload, devices: Ints) -> Score:
    """Time of one sample when every accelerator runs its nodes as one contracted subgraph.

    Args:
        workload: what was placed.
        devices: device of every node, 0 for the CPUs, `int64[n]`.

    Returns:
        The value in milliseconds, and the reasons as for `max_load`; also that a path leaves an accelerator and comes back,
        or that accelerators wait for each other, either of which makes the value infinite.

    Raises:
        SegueError: unless there is one device >= 0 for every node.
    """
    devices = _checked(workload, devices)
    loads = device_loads(workload, devices)
    room = latency_room(workload.num_nodes, len(loads))
    value = last_finish(workload.flow, devices, loads, *room)
    reasons = _reasons(workload, devices)
    if not np.isfinite(value):
        waiting = np.flatnonzero(room[0][workload.num_nodes :] > 0) + 1
        named = ", ".join(str(device) for device in waiting)
        reasons += (f"accelerators {named}: a path leaves one of them and comes back to it",)
    return Score(float(value), reasons)


OBJECTIVES: dict[str, Callable[[Workload, Ints], Score]] = {"max-load": max_load, "latency": latency}
"""Objectives by the name that the command line takes."""


def device_loads(workload: Workload, devices: Ints) -> Floats:
    """Milliseconds that each device is busy for one sample, the CPUs first, `float64[devices]`."""
    count = max(workload.accelerators, int(devices.max())) + 1
    loads = np.zeros(count)
    add_loads(workload.flow, devices, loads, np.full(count, -1))
    return loads


def device_bytes(workload: Workload, devices: Ints) -> Floats:
    """Bytes on each accelerator; nodes on the CPUs take none of theirs, so the first entry is 0."""
    count = max(workload.accelerators, int(devices.max())) + 1
    held = np.zeros(count)
    np.add.at(held, devices, workload.size_bytes)
    held[CPU] = 0.0
    return held


def latency_room(num_nodes: int, num_devices: int) -> tuple[Ints, Floats, Ints, Ints, Ints]:
    """Arrays that `last_finish` works in: missing inputs, start, queue, first node on a device, next node on the device."""
    groups = num_nodes + num_devices - 1
    whole = [np.zeros(groups, np.int64), np.zeros(groups, np.int64)]
    chain = [np.zeros(num_devices, np.int64), np.zeros(num_nodes, np.int64)]
    return whole[0], np.zeros(groups), whole[1], chain[0], chain[1]


@hot
def add_loads(flow: Flow, devices: Ints, loads: Floats, seen: Ints) -> None:
    """Add what every node brings onto its device and its consumers' devices; `seen` holds -1 for every device."""
    for node in range(devices.shape[0]):
        own = devices[node]
        loads[own] += flow.cpu_ms[node] if own == 0 else flow.accelerator_ms[node]
        sent = False
        for edge in range(flow.out_start[node], flow.out_start[node + 1]):
            other = devices[flow.consumers[edge]]
            if other == own or seen[other] == node:
                continue
            seen[other] = node
            sent = True
            if other != 0:
                loads[other] += flow.cost_ms[node]
        if sent and own != 0:
            loads[own] += flow.cost_ms[node]


@hot
def last_finish(
    flow: Flow, devices: Ints, loads: Floats, missing: Ints, start: Floats, queue: Ints, first: Ints, following: Ints
) -> float:
    """Latency in milliseconds, infinite if a group waits for itself; the last five arguments are `latency_room`'s.

    A group is a node on the CPUs (numbered as the node) or an accelerator (numbered on from the nodes). An accelerator's
    duration is its load: what it receives, computes and sends, one after the other. Afterwards `missing` is > 0 for the
    groups that could not start.
    """
    count = devices.shape[0]
    missing[:] = 0
    start[:] = 0.0
    first[:] = -1
    for node in range(count):
        own = devices[node]
        if own != 0:
            following[node] = first[own]
            first[own] = node
        for edge in range(flow.out_start[node], flow.out_start[node + 1]):
            other = flow.consumers[edge]
            if devices[other] == 0:
                missing[other] += 1
            elif devices[other] != own:
                missing[count + devices[other] - 1] += 1
    head = tail = 0
    for group in range(missing.shape[0]):
        empty = devices[group] != 0 if group < count else first[group - count + 1] < 0
        if missing[group] == 0 and not empty:
            queue[tail] = group
            tail += 1
    finish: float = 0.0
    while head < tail:
        group = queue[head]
        head += 1
        end = start[group] + (flow.cpu_ms[group] if group < count else loads[group - count + 1])
        if end > finish:
            finish = float(end)
        node = group if group < count else first[group - count + 1]
        while node >= 0:
            for edge in range(flow.out_start[node], flow.out_start[node + 1]):
                other = flow.consumers[edge]
                if devices[other] != 0:
                    if devices[other] == devices[node]:
                        continue
                    other = count + devices[other] - 1
                start[other] = max(start[other], end)
                missing[other] -= 1
                if missing[other] == 0:
                    queue[tail] = other
                    tail += 1
            node = -1 if group < count else following[node]
    for group in range(missing.shape[0]):
        if missing[group] > 0:
            return np.inf
    return finish


def _checked(workload: Workload, devices: Ints) -> Ints:
    devices = np.ascontiguousarray(devices)
    if devices.shape != (workload.num_nodes,) or devices.dtype.kind not in "iu" or devices.min() < 0:
        raise SegueError(
            f"workload {workload.name}: devices: expected one device >= 0 for each of {workload.num_nodes} nodes"
        )
    return devices.astype(np.int64)


def _reasons(workload: Workload, devices: Ints) -> tuple[str, ...]:
    """Why sizes, classes, unsupported nodes or the number of accelerators forbid a placement."""
    reasons = []
    used = np.unique(devices)
    accelerators = used[used != CPU]
    if len(accelerators) > workload.accelerators:
        reasons.append(f"{len(accelerators)} accelerators are used; there are {workload.accelerators}")
    if workload.cpus == 0 and CPU in used:
        reasons.append("nodes are on a CPU; there is none")
    held = device_bytes(workload, devices)
    for device in np.flatnonzero(held > workload.accelerator_bytes * (1 + ROUNDING)):
        reasons.append(f"accelerator {device}: {held[device]:.0f} bytes do not fit {workload.accelerator_bytes:.0f}")
    for node in np.flatnonzero(~workload.supported & (devices != CPU))[:1]:
        reasons.append(f"node {workload.ids[node]} is on accelerator {devices[node]}, which cannot run it")
    colored = np.flatnonzero(workload.color >= 0)
    _, first, inverse = np.unique(workload.color[colored], return_index=True, return_inverse=True)
    leader = colored[first][inverse]
    for place in np.flatnonzero(devices[colored] != devices[leader])[:1]:
        pair = workload.ids[leader[place]], workload.ids[colored[place]]
        reasons.append(f"nodes {pair[0]} and {pair[1]} share a colour class but not a device")
    return tuple(reasons)
