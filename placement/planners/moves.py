"""Moves: the small changes of a placement that searches try."""

from collections import defaultdict

import numpy as np

from ..clock import SimulatedClock
from ..graph import Graph
from .plan import Devices, leaders

MEAN_RUN = 8


class Moves:
    """Draws neighbours of a placement: some ops that belong together go to one other device.

    Which ops: one op with its colocation group; a run of consecutive ops; a branch (an unbranched chain, or the ops of
    one module); or all that the op's device holds of a long run. Where to: half of the time to a device that a neighbour
    of the op is on, else to any.
    """

    def __init__(self, clock: SimulatedClock):
        graph = clock.graph
        self.num_devices = clock.topology.num_devices
        self.edges = clock.edges
        self.leader = leaders(graph)
        self.branches = chains(graph) + module_blocks(graph)
        self.branches_of: list[list[int]] = [[] for _ in range(graph.num_ops)]
        for position, branch in enumerate(self.branches):
            for op in branch:
                self.branches_of[op].append(position)

    def draw(self, devices: Devices, rng: np.random.Generator) -> Devices:
        """A neighbour of `devices`; colocation groups touched in part are made whole."""
        op = int(rng.integers(len(devices)))
        kind = rng.random()
        if kind < 0.3:
            ops = np.array([op])
        elif kind < 0.6:
            ops = np.arange(op, min(len(devices), op + 1 + int(rng.geometric(1 / MEAN_RUN))))
        elif kind < 0.9 and self.branches_of[op]:
            ops = self.branches[int(rng.choice(self.branches_of[op]))]
        else:
            ops = np.arange(op, min(len(devices), op + 1 + len(devices) // 8))
            ops = ops[devices[ops] == devices[op]]
        moved = devices.copy()
        moved[np.isin(self.leader, self.leader[ops])] = self._target(op, devices, rng)
        return moved

    def _target(self, op: int, devices: Devices, rng: np.random.Generator) -> int:
        """A device other than the op's own, if there is one."""
        if rng.random() < 0.5:
            producers = self.edges.sources[self.edges.in_start[op] : self.edges.in_start[op + 1]]
            consumers = self.edges.targets[self.edges.out_start[op] : self.edges.out_start[op + 1]]
            near = devices[np.concatenate([producers, consumers])]
            near = near[near != devices[op]]
            if near.size:
                return int(rng.choice(near))
        step = int(rng.integers(1, max(2, self.num_devices)))
        return (int(devices[op]) + step) % self.num_devices


def chains(graph: Graph) -> list[Devices]:
    """Maximal unbranched chains of two or more ops, but not the whole graph."""
    outgoing = np.bincount(graph.edges[:, 0], minlength=graph.num_ops)
    incoming = np.bincount(graph.edges[:, 1], minlength=graph.num_ops)
    chain = np.arange(graph.num_ops)
    for source, target in graph.edges[np.argsort(graph.edges[:, 1], kind="stable")]:
        if outgoing[source] == 1 and incoming[target] == 1:
            chain[target] = chain[source]
    return _blocks(chain.tolist(), graph.num_ops)


def module_blocks(graph: Graph) -> list[Devices]:
    """Ops under one module path, for every path with two or more ops, but not the whole graph."""
    paths = [module.split(".") if module else [] for module in graph.modules]
    blocks: list[Devices] = []
    for depth in range(1, max(map(len, paths)) + 1):
        labels = [".".join(path[:depth]) if len(path) >= depth else None for path in paths]
        blocks += _blocks(labels, graph.num_ops)
    return blocks


def _blocks(labels: list, num_ops: int) -> list[Devices]:
    members: dict = defaultdict(list)
    for op, label in enumerate(labels):
        if label is not None:
            members[label].append(op)
    return [np.array(ops) for ops in members.values() if 1 < len(ops) < num_ops]
