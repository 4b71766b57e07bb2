"""Random graphs, topologies and maps for the property tests (`data.draw(problems)`)."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import strategies as st

from segue.placement.clock import SimulatedClock
from segue.placement.costs import Profile, make_costs
from segue.placement.errors import SegueError
from segue.placement.graph import make_graph
from segue.placement.placement import Placement
from segue.placement.topology import Device, Link, Topology


def links_between(names, latency_s, bandwidth):
    pairs = [(a, b) for a in names for b in names if a != b]
    return tuple(Link(a, b, float(lat), float(bw)) for (a, b), lat, bw in zip(pairs, latency_s, bandwidth, strict=True))


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
    costs, run_ahead, clipping = make_costs(graph, topology, profile), draw(st.integers(0, 2)), draw(st.booleans())
    clock = SimulatedClock(graph, topology, costs, sizes, run_ahead, clipping)
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


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 10**400, -(10**400), 2**63, 1e-320, 1e308, float("nan"), float("inf"), -3.5]),
    st.sampled_from(["", "nan", "16e9", "d0", "a\nb", "\ud800", "\u2028", "x" * 50]),
    st.lists(st.integers(-2, 2), max_size=3),
    st.lists(st.lists(st.integers(-2, 2), max_size=2), max_size=2),
    st.dictionaries(st.sampled_from(["name", "d0", "op0"]), st.none(), max_size=1),
)


@st.composite
def draw_mutated(draw, record):
    """A copy of a JSON record with one to three entries replaced, removed, repeated or added at any depth."""
    record = copy.deepcopy(record)
    for _ in range(draw(st.integers(1, 3))):
        holder = record
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            inner = [key for key in keys if isinstance(holder[key], dict | list) and holder[key]]
            if not inner or draw(st.booleans()):
                break
            holder = holder[draw(st.sampled_from(inner))]
        what = draw(st.sampled_from(["replace", "remove", "add"])) if keys else "add"
        if what == "replace":
            holder[draw(st.sampled_from(keys))] = draw(JUNK)
        elif what == "remove":
            del holder[draw(st.sampled_from(keys))]
        elif isinstance(holder, dict):
            holder[draw(st.sampled_from(["extra", "op9", "\ud800", "a\nb"]))] = draw(JUNK)
        else:
            holder.append(holder[0] if holder and draw(st.booleans()) else draw(JUNK))
    return record


@pytest.fixture(scope="session")
def mutations():
    return draw_mutated


@pytest.fixture(scope="session")
def refuses_or_reads():
    """Calls a reader; whatever it raises must be a `SegueError` of one line that names the file."""

    def check(read, path):
        try:
            return read(path)
        except SegueError as error:
            message = str(error)
            assert message.startswith(str(path)), message
            assert len(message.splitlines()) == 1, message
            return None

    return check


@pytest.fixture(scope="session")
def scratch(tmp_path_factory):
    """A folder that the examples of a property test share."""
    return tmp_path_factory.mktemp("scratch")
