"""Held-out cases that policies are judged on: families that no training saw, devices and starts of every kind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..env.graph_variants import variant
from ..env.random_graphs import random_graph, wide_branches
from ..env.random_topologies import random_topology
from ..env.scenarios import MICROBATCH_CHANCES, MICROBATCHES, random_start
from ..placement.clock import SimulatedClock
from ..placement.costs import make_costs
from ..placement.graph import Graph
from ..placement.objective_clock import make_clock
from ..placement.placement import Placement
from ..placement.presets import preset, presets
from ..placement.topology import Topology

Rng = np.random.Generator
HELD_OUT_SEED = 9_000_000
MOST_DEVICES = 8
MOST_BRANCH_OPS = 160


@dataclass(frozen=True, eq=False)
class Case:
    """What a policy is judged on.

    Attributes:
        family: the graph's.
        name: of the graph and the topology.
        clock: prices placements.
        start: where every method begins.
    """

    family: str
    name: str
    clock: SimulatedClock
    start: Placement


def held_out_cases(
    families: Mapping[str, Sequence[Graph]], count: int, seed: int = 0, objective: str = "step-time"
) -> list[Case]:
    """Cases of all held-out families in turn, random wide branches among them.

    Captured graphs come with their own costs and with other costs in turn, on declared GPUs and on random devices.

    Args:
        families: held-out graphs by family.
        count: cases.
        seed: of the cases.
        objective: what is to be minimised; see `make_clock`.
    """
    names = [*families, "wide branches"]
    cases = []
    for index in range(count):
        rng = np.random.default_rng(HELD_OUT_SEED + 1000 * seed + index)
        family, turn = names[index % len(names)], index // len(names)
        if family in families:
            graph = families[family][turn % len(families[family])]
            graph = graph if turn % 2 == 0 else variant(rng, graph)
        else:
            graph = random_graph(rng, MOST_BRANCH_OPS, wide_branches)
        declared = family in families and (index + turn) % 2 == 0
        topology = _declared(rng) if declared else random_topology(rng, graph, MOST_DEVICES)
        microbatches = int(rng.choice(MICROBATCHES, p=MICROBATCH_CHANCES))
        cases.append(make_case(family, graph, topology, microbatches, rng, objective))
    return cases


def make_case(
    family: str, graph: Graph, topology: Topology, microbatches: int, rng: Rng, objective: str = "step-time"
) -> Case:
    """A case with a start of any kind."""
    clock = make_clock(graph, topology, make_costs(graph, topology), (1,) * microbatches, objective)
    start: NDArray[np.int64] = random_start(rng, clock)
    name = f"{graph.name} on {topology.name} ({topology.num_devices} devices, {clock.microbatches} microbatches)"
    return Case(family, name, clock, Placement(start, clock.microbatches))


def _declared(rng: Rng) -> Topology:
    fitting = [found for found in map(preset, presets()) if 2 <= found.num_devices <= MOST_DEVICES]
    return fitting[rng.integers(len(fitting))]


def hardware_cases(graph: Graph, seed: int = 0) -> list[Case]:
    """One graph on random topologies of 2, 3, 4, 8 and 16 devices and on every preset of more than one."""
    rng = np.random.default_rng(HELD_OUT_SEED + 500 + seed)
    cases = []
    for count in (2, 3, 4, 8, 16):
        topology = random_topology(rng, graph, count)
        while topology.num_devices != count:
            topology = random_topology(rng, graph, count)
        cases.append(make_case(f"random, {count} devices", graph, topology, 4, rng))
    for name in presets():
        topology = preset(name)
        if topology.num_devices > 1:
            cases.append(make_case(name, graph, topology, 4, rng))
    return cases
