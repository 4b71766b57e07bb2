"""Evaluation where the model is: a forward pass whose ops follow the tensors that they read."""

from collections.abc import Mapping

import numpy as np

from ..errors import SegueError
from ..program import Program, node_inputs


def follow_tensors(program: Program, owners: Mapping[str, int]) -> np.ndarray:
    """Devices for a program's ops, such that no parameter and no buffer has to travel.

    An op is where the tensors are that it reads; one that reads none is with its last producer, or, if there is nothing
    before it that has a place, with its first consumer.

    Args:
        program: the captured model.
        owners: device of every parameter and buffer, by name.

    Returns:
        `int64[n]`, ops that must share a device together.

    Raises:
        SegueError: if an op, or ops that must share a device, read tensors of several devices.
    """
    groups = _groups(program)
    device: dict[int, int] = {}
    first: dict[int, str] = {}
    for op, name in _tensors_read(program):
        group = groups[op]
        if device.setdefault(group, owners[name]) != owners[name]:
            raise SegueError(
                f"eval: op {program.graph.names[op]} reads {first[group]} on device {device[group]} and {name} on device "
                f"{owners[name]}, which training does not read together; place their ops on one device"
            )
        first.setdefault(group, name)
    edges = program.graph.edges.tolist()
    for source, target in sorted(edges, key=lambda edge: (edge[1], -edge[0])):
        if groups[source] in device:
            device.setdefault(groups[target], device[groups[source]])
    for source, target in sorted(edges, key=lambda edge: (-edge[0], edge[1])):
        if groups[target] in device:
            device.setdefault(groups[source], device[groups[target]])
    return np.array([device.get(group, 0) for group in groups], np.int64)


def _groups(program: Program) -> list[int]:
    """A number for each op that it shares with the ops it must share a device with."""
    labels = program.graph.colocation
    single = labels.max(initial=-1) + 1 + np.arange(len(labels))
    return np.where(labels >= 0, labels, single).tolist()


def _tensors_read(program: Program) -> list[tuple[int, str]]:
    """(op, name) of every parameter and buffer that an op reads, in order of the ops."""
    names = program.parameters | program.buffers
    return [
        (op, names[source.name])
        for op, node in enumerate(program.nodes)
        for source in node_inputs(node)
        if source.name in names
    ]
