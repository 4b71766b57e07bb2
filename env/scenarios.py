"""Random graphs, topologies and starting placements to train and test on."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..placement.clock import Clock, SimulatedClock
from ..placement.costs import ROOFLINE_FLOPS_PER_S, Costs, make_costs
from ..placement.graph import Graph, make_graph
from ..placement.placement import Placement
from ..placement.topology import Device, Link, Topology

Rng = np.random.Generator
Ints = NDArray[np.int64]
Edges = list[tuple[int, int]]


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
    """Draws training scenarios: a graph of 10–60 ops on 2 to `max_devices` unequal devices.

    Speeds differ up to eightfold, links up to twentyfold; transfers cost from next to nothing to more than the compute;
    memory is tight in some; 1, 2, 4 or 8 microbatches.

    Attributes:
        max_devices: most devices in a topology.
        most_ops: most ops in a graph, but for a last block of branches, which is always completed.
    """

    max_devices: int = 8
    most_ops: int = 60

    def __call__(self, rng: Rng) -> Scenario:
        """Draw one scenario."""
        graph = random_graph(rng, self.most_ops)
        topology = random_topology(rng, graph, self.max_devices)
        microbatches = int(rng.choice([1, 2, 4, 8], p=[0.15, 0.25, 0.35, 0.25]))
        devices = random_start(rng, graph, topology)
        if rng.random() < 0.25:
            devices = balanced_split(graph, topology.speed)
            slow = np.ones(topology.num_devices)
            slow[rng.integers(topology.num_devices)] = rng.uniform(2, 4)
            topology = topology.with_speed(topology.speed / slow)
        clock = SimulatedClock(graph, topology, make_costs(graph, topology), (1,) * microbatches)
        return Scenario(clock, Placement(devices, microbatches))


def random_graph(rng: Rng, most_ops: int = 60) -> Graph:
    """A graph of 10 to `most_ops` ops (more if its last block is large): a chain with skips, layers, or branches."""
    num_ops = int(rng.integers(10, most_ops + 1))
    family: Callable[[Rng, int], tuple[Edges, list[str]]]
    family = (_chain_with_skips, _layers, _branches)[rng.choice(3, p=[0.35, 0.2, 0.45])]
    edges, modules = family(rng, num_ops)
    num_ops = len(modules)
    forward_s = rng.lognormal(0.0, rng.uniform(0.2, 1.5), num_ops)
    forward_s *= np.where(rng.random(num_ops) < rng.uniform(0, 0.5), 0.02, 1.0)  # activations beside layers
    forward_s *= 0.01 / forward_s.mean()
    output = rng.lognormal(0.0, rng.uniform(0.2, 1.2), num_ops)
    output *= np.exp(np.linspace(0, rng.normal(0, 1.5), num_ops))  # feature maps that shrink or grow with depth
    state = rng.lognormal(0.0, rng.uniform(0.5, 2.0), num_ops) * (rng.random(num_ops) < 0.7)
    return make_graph(
        "random",
        edges,
        num_ops,
        modules=modules,
        forward_flops=forward_s * ROOFLINE_FLOPS_PER_S,
        backward_flops=2 * forward_s * ROOFLINE_FLOPS_PER_S,
        output_bytes=1e6 * output / output.mean(),
        saved_bytes=1e6 * output / output.mean() * rng.uniform(1, 3),
        parameter_bytes=1e6 * state / max(state.mean(), 1e-9) * 10 ** rng.uniform(-1, 1),
    )


def _chain_with_skips(rng: Rng, num_ops: int) -> tuple[Edges, list[str]]:
    edges = [(op, op + 1) for op in range(num_ops - 1)]
    reach = int(rng.integers(2, max(3, num_ops // 2)))
    for op in range(num_ops - 2):
        if rng.random() < rng.choice([0.0, 0.1, 0.3]):
            edges.append((op, min(num_ops - 1, op + int(rng.integers(2, reach + 1)))))
    block = int(rng.integers(2, 8))
    return edges, [f"layers.{op // block}" for op in range(num_ops)]


def _layers(rng: Rng, num_ops: int) -> tuple[Edges, list[str]]:
    width = int(rng.integers(2, 7))
    layer = np.sort(rng.integers(0, max(2, num_ops // width), num_ops))
    layer = np.unique(layer, return_inverse=True)[1]
    edges: Edges = []
    for op in range(num_ops):
        earlier = np.flatnonzero(layer == layer[op] - 1)
        if earlier.size:
            count = min(earlier.size, int(rng.integers(1, 3)))
            edges += [(int(source), op) for source in rng.choice(earlier, count, replace=False)]
        if layer[op] > 1 and rng.random() < 0.1:
            edges.append((int(rng.choice(np.flatnonzero(layer < layer[op]))), op))
    return edges, [f"layers.{index}" for index in layer]


def _branches(rng: Rng, num_ops: int) -> tuple[Edges, list[str]]:
    """Blocks of parallel chains from one op to one concatenation, as Inception's, experts', or two towers'."""
    edges: Edges = []
    modules = ["stem"]
    last, block = 0, 0
    deepest = int(rng.integers(2, 5)) if rng.random() < 0.7 else num_ops // 3
    while len(modules) < num_ops - 2:
        ends = []
        for branch in range(int(rng.integers(2, 6))):
            previous = last
            for _ in range(int(rng.integers(1, deepest + 1))):
                edges.append((previous, len(modules)))
                previous = len(modules)
                modules.append(f"blocks.{block}.branch{branch}")
            ends.append(previous)
        edges += [(end, len(modules)) for end in ends]
        last = len(modules)
        modules.append(f"blocks.{block}")
        block += 1
        for _ in range(int(rng.integers(0, 3))):
            edges.append((last, len(modules)))
            last = len(modules)
            modules.append(f"between.{block}")
    return edges, modules


def random_topology(rng: Rng, graph: Graph, max_devices: int) -> Topology:
    """2 to `max_devices` unequal devices in one or two hosts, with links and memory that suit the graph's size."""
    count = int(rng.integers(2, max_devices + 1))
    speed = np.exp(rng.uniform(0, np.log(8), count) * rng.choice([0.0, 0.5, 1.0], p=[0.15, 0.35, 0.5]))
    need = 4 * graph.parameter_bytes.sum() + 2 * graph.saved_bytes.sum()
    share = rng.dirichlet(np.full(count, 10.0))
    slack = rng.uniform(1.5, 3) if rng.random() < 0.3 else rng.uniform(4, 20)
    memory = np.maximum(need * slack * share, 1.2 * (4 * graph.parameter_bytes + graph.saved_bytes).max())
    host = np.sort(rng.integers(0, 2, count)) if rng.random() < 0.4 else np.zeros(count, np.int64)
    op_s = float(graph.forward_flops.mean()) / ROOFLINE_FLOPS_PER_S
    per_byte = op_s * 10 ** rng.uniform(-2.5, 0.5) / float(graph.output_bytes.mean())
    latency = op_s * 10 ** rng.uniform(-4, -0.7)
    between = rng.uniform(2, 20)
    uneven = rng.choice([0.0, 0.4])
    links = []
    for a in range(count):
        for b in range(count):
            if a != b:
                slower = (between if host[a] != host[b] else 1.0) * float(np.exp(rng.normal(0, uneven)))
                links.append(Link(f"dev{a}", f"dev{b}", latency * slower, 1.0 / (per_byte * slower)))
    overhead = op_s * 10 ** rng.uniform(-4, -1.3)
    devices = [
        Device(f"dev{i}", "emulated", float(memory[i]), float(speed[i]), overhead, f"host{host[i]}")
        for i in range(count)
    ]
    return Topology("random", tuple(devices), tuple(links))


def random_start(rng: Rng, graph: Graph, topology: Topology) -> Ints:
    """A contiguous split by op count or by time, a random map, or all ops on one device."""
    count, num_ops = topology.num_devices, graph.num_ops
    kind = rng.choice(4, p=[0.35, 0.25, 0.2, 0.2])
    if kind == 0:
        return np.arange(num_ops) * count // num_ops
    if kind == 1:
        order = rng.permutation(count)
        return order[balanced_split(graph, topology.speed[order])]
    if kind == 2:
        return rng.integers(0, count, num_ops)
    return np.full(num_ops, rng.integers(count))


def balanced_split(graph: Graph, speed: NDArray[np.float64]) -> Ints:
    """Contiguous parts of the op order whose compute is in proportion to the devices' speeds, `int64[ops]`."""
    work = np.cumsum(graph.forward_flops + graph.backward_flops)
    bounds = np.cumsum(speed) / speed.sum() * work[-1]
    return np.minimum(np.searchsorted(bounds, work - 1e-9 * work[-1]), len(speed) - 1)
