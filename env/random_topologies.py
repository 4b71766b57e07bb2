"""Random devices and links that suit a graph's size, and changes that come over them."""

from dataclasses import replace

import numpy as np

from ..placement.costs import roofline
from ..placement.graph import Graph
from ..placement.topology import Device, Link, Topology

Rng = np.random.Generator


def random_topology(rng: Rng, graph: Graph, max_devices: int) -> Topology:
    """2 to `max_devices` devices, equal or up to eightfold unequal, in one to four hosts.

    Transfers cost from next to nothing to more than the compute; links within an island are up to twentyfold faster than
    those between islands; memory is tight in some.
    """
    count = 2 + int((max_devices - 1) * rng.random() ** 2.5)
    speed = np.exp(rng.uniform(0, np.log(8), count) * rng.choice([0.0, 0.5, 1.0], p=[0.25, 0.35, 0.4]))
    need = 4 * graph.parameter_bytes.sum() + 2 * graph.saved_bytes.sum()
    share = rng.dirichlet(np.full(count, 10.0)) if rng.random() < 0.7 else np.full(count, 1 / count)
    slack = rng.uniform(1.5, 3) if rng.random() < 0.3 else rng.uniform(4, 20)
    memory = np.maximum(need * slack * share, 1.2 * (4 * graph.parameter_bytes + graph.saved_bytes).max())
    memory = np.maximum(memory, 1.0)
    island = np.sort(rng.integers(0, rng.integers(1, 5), count))
    op_s = float(roofline(graph).forward_s.mean())
    per_byte = op_s * 10 ** rng.uniform(-2.5, 0.5) / max(float(graph.output_bytes.mean()), 1.0)
    latency = op_s * 10 ** rng.uniform(-4, -0.7)
    between = rng.uniform(2, 20)
    uneven = rng.choice([0.0, 0.4])
    links = []
    for a in range(count):
        for b in range(count):
            if a != b:
                slower = (between if island[a] != island[b] else 1.0) * float(np.exp(rng.normal(0, uneven)))
                links.append(Link(f"dev{a}", f"dev{b}", latency * slower, 1.0 / (per_byte * slower)))
    overhead = op_s * 10 ** rng.uniform(-4, -1.3)
    devices = [
        Device(f"dev{i}", "emulated", float(memory[i]), float(speed[i]), overhead, f"host{island[i]}")
        for i in range(count)
    ]
    return Topology("random", tuple(devices), tuple(links))


def changed(rng: Rng, topology: Topology) -> Topology:
    """The topology after one device has become 2 to 4 times slower, or one device's links 3 to 10 times."""
    chosen = int(rng.integers(topology.num_devices))
    if rng.random() < 0.6:
        slow = np.ones(topology.num_devices)
        slow[chosen] = rng.uniform(2, 4)
        return topology.with_speed(topology.speed / slow)
    name, factor = topology.devices[chosen].name, rng.uniform(3, 10)
    links = [
        replace(link, bandwidth_bytes_per_s=link.bandwidth_bytes_per_s / factor)
        if name in (link.source, link.target)
        else link
        for link in topology.links
    ]
    return replace(topology, links=tuple(links))
