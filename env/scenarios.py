"""`ScenarioSampler`: what to train on; a graph on devices, and the placement to start from."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..placement.clock import Clock, SimulatedClock
from ..placement.coarsen import coarsen
from ..placement.costs import Costs, make_costs, roofline
from ..placement.errors import SegueError
from ..placement.graph import Graph
from ..placement.objective_clock import OBJECTIVES, make_clock
from ..placement.placement import Placement, colocate
from ..placement.planners import plan
from ..placement.planners.unit_annealing import anneal_units
from ..placement.presets import preset, presets
from ..placement.topology import Topology
from .graph_variants import joined, section, variant
from .random_graphs import random_graph
from .random_topologies import changed, random_topology

Rng = np.random.Generator
Ints = NDArray[np.int64]

MICROBATCHES, MICROBATCH_CHANCES = (1, 2, 4, 8), (0.15, 0.25, 0.35, 0.25)
OBJECTIVE_CHANCES = (0.84, 0.08, 0.08)
"""Of `OBJECTIVES`, in their order."""
PLANNED = ("equal-layers", "equal-parameters", "equal-time", "speed-proportional", "contiguous", "heft", "round-robin")
START_EVALUATIONS = 300
"""Of the annealing that made a start which was good until something changed."""


@dataclass(frozen=True, eq=False)
class Scenario:
    """What one episode is about.

    Attributes:
        clock: times a step under a placement.
        start: the placement the episode starts from.
        costs: what ops cost; by default the clock's own, else the roofline's.
    """

    clock: Clock
    start: Placement
    costs: Costs | None = None


@dataclass(frozen=True)
class ScenarioSampler:
    """Draws training scenarios: a random graph or a variant of a given one, on 2 to `max_devices` devices.

    Of given graphs half are whole, the others are sections, or two joined, all with other costs. What is to be minimised is
    mostly the step time, sometimes the load of the busiest device or the latency of a forward pass. Starts are random maps
    and splits, manual configurations, planners' answers, and placements that annealing had found before a device or a
    device's links became slower; 1, 2, 4 or 8 microbatches.

    Attributes:
        max_devices: most devices in a topology.
        most_ops: most ops in a random graph, but for a last block of branches, which is always completed.
        graphs: captured graphs to draw variants of.
        share: share of scenarios that are of such variants, if there are any.
    """

    max_devices: int = 8
    most_ops: int = 60
    graphs: tuple[Graph, ...] = ()
    share: float = 0.6

    def __call__(self, rng: Rng) -> Scenario:
        """Draw one scenario."""
        given = bool(self.graphs) and rng.random() < self.share
        graph = self._of_given(rng) if given else random_graph(rng, self.most_ops)
        topology = _topology(rng, graph, self.max_devices, declared=bool(self.graphs))
        sizes = (1,) * int(rng.choice(MICROBATCHES, p=MICROBATCH_CHANCES))
        objective = str(rng.choice(OBJECTIVES, p=OBJECTIVE_CHANCES))
        clock = make_clock(graph, topology, make_costs(graph, topology), sizes, objective)
        if rng.random() < 0.25:
            groups = coarsen(graph, 32)
            start = random_start(rng, clock)
            seed = int(rng.integers(1 << 31))
            devices = anneal_units(clock, groups, start, evaluations=START_EVALUATIONS, seed=seed).devices
            topology = changed(rng, topology)
            clock = make_clock(graph, topology, make_costs(graph, topology), sizes, objective)
        else:
            devices = random_start(rng, clock)
        return Scenario(clock, Placement(devices, clock.microbatches))

    def _of_given(self, rng: Rng) -> Graph:
        def drawn() -> Graph:
            return self.graphs[rng.integers(len(self.graphs))]

        kind = rng.choice(3, p=[0.5, 0.3, 0.2])
        if kind == 0:
            return variant(rng, drawn())
        if kind == 1:
            return variant(rng, section(rng, drawn()))
        return variant(rng, joined(rng, section(rng, drawn()), section(rng, drawn())))


def _topology(rng: Rng, graph: Graph, max_devices: int, declared: bool) -> Topology:
    """Random devices, or sometimes a preset of declared GPUs."""
    if declared and rng.random() < 0.2:
        fitting = [found for found in map(preset, presets()) if 2 <= found.num_devices <= max_devices]
        if fitting:
            return fitting[rng.integers(len(fitting))]
    return random_topology(rng, graph, max_devices)


def random_start(rng: Rng, clock: SimulatedClock) -> Ints:
    """A planner's answer, a contiguous split by op count or by time, a random map, or all ops on one device, `int64[ops]`."""
    graph, topology = clock.graph, clock.topology
    count, num_ops = topology.num_devices, graph.num_ops
    kind = rng.choice(5, p=[0.35, 0.15, 0.2, 0.15, 0.15])
    if kind == 0:
        name = PLANNED[rng.integers(len(PLANNED))]
        return plan(name, clock, evaluations=1, seed=int(rng.integers(1 << 31))).devices
    if kind == 1:
        devices = np.arange(num_ops) * count // num_ops
    elif kind == 2:
        order = rng.permutation(count)
        devices = order[balanced_split(graph, topology.speed[order])]
    elif kind == 3:
        devices = rng.integers(0, count, num_ops)
    else:
        devices = np.full(num_ops, rng.integers(count))
    return colocate(devices, graph)


def balanced_split(graph: Graph, speed: NDArray[np.float64]) -> Ints:
    """Contiguous parts of the op order whose compute is in proportion to the devices' speeds, `int64[ops]`."""
    profile = roofline(graph)
    work = np.cumsum(profile.forward_s + profile.backward_s)
    if not work[-1] > 0:
        raise SegueError(f"graph {graph.name}: every op takes 0 seconds; nothing to place by")
    bounds = np.cumsum(speed) / speed.sum() * work[-1]
    return np.minimum(np.searchsorted(bounds, work - 1e-9 * work[-1]), len(speed) - 1)
