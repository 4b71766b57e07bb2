"""Random graphs, topologies and maps for the property tests (`data.draw(problems)`)."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import strategies as st

from segue.placement.clock import SimulatedClock
from segue.placement.costs import Profile, make_costs
from segue.placement.graph import make_graph
from segue.placement.placement import Placement
from segue.placement.topology import Device, Link, Topology


def links_between(names, latency_s, bandwidth):
    pairs = [(a, b) for a in names for b in names if a != b]
    return tuple(
        Link(a, b, float(lat), float(bw)) for (a, b), lat, bw in zip(pairs, latency_s, bandwidth, strict=True)
    )


@st.composite
def draw_problem(draw, most_ops=14, most_devices=4, most_micro=5):
    """A clock, a map and a placement; small whole costs, zero among them, so that events often coincide."""
    ops = draw(st.integers(1, most_ops))
    devices = draw(st.integers(1, most_devices))
    pair = st.tuples(st.integers(0, ops - 1), st.integers(0, ops - 1)).filter(lambda p: p[0] < p[1])
    edges = draw(st.lists(pair, max_size=3 * ops)) if ops > 1 else []
    small = st.integers(0, 5)
    column = st.lists(small, min_size=ops, max_size=ops).map(lambda values: np.array(values, float))
    flags = st.lists(st.sampled_from([True, True, True, False]), min_size=ops, max_size=ops)
    grad = np.array(draw(flags))
    graph = make_graph(
        "drawn",
        edges,
        ops,
        batch_size=4,
        requires_grad=grad,
        output_bytes=draw(column),
        saved_bytes=draw(column),
        parameter_bytes=draw(column),
    )
    names = [f"d{i}" for i in range(devices)]
    count = devices * (devices - 1)
    speed = draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=devices, max_size=devices))
    overhead = draw(st.sampled_from([0.0, 0.25]))
    topology = Topology(
        "drawn",
        tuple(Device(name, "emulated", 1e9, s, overhead) for name, s in zip(names, speed, strict=True)),
        links_between(
            names,
            draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=count, max_size=count)),
            draw(st.lists(st.sampled_from([1.0, 3.0, 1e9]), min_size=count, max_size=count)),
        ),
    )
    profile = Profile(draw(column), draw(column) * grad, draw(column), "drawn")
    micro = draw(st.integers(1, most_micro))
    sizes = [4] * micro
    if micro > 1:
        sizes[-1] = draw(st.integers(1, 4))
    clock = SimulatedClock(graph, topology, make_costs(graph, topology, profile), sizes, draw(st.integers(0, 2)))
    where = np.array(draw(st.lists(st.integers(0, devices - 1), min_size=ops, max_size=ops)), np.int64)
    return SimpleNamespace(
        graph=graph,
        topology=topology,
        profile=profile,
        clock=clock,
        devices=where,
        placement=Placement(where, micro),
        micro=micro,
    )


@pytest.fixture(scope="session")
def problems():
    return draw_problem()
