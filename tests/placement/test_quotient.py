import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.placement.clock import SimulatedClock
from segue.placement.costs import make_costs
from segue.placement.graph import COSTS, Graph, make_graph
from segue.placement.move_cost import MoveCost
from segue.placement.placement import Placement, check_placement, colocate
from segue.placement.presets import preset
from segue.placement.quotient import make_quotient


def random_graph(seed: int, count: int, classes: int = 0) -> Graph:
    rng = np.random.default_rng(seed)
    edges = [(int(rng.integers(max(0, i - 4), i)), i) for i in range(1, count)]
    edges += [(int(rng.integers(0, i)), i) for i in range(1, count) if rng.random() < 0.3]
    colocated = rng.random(count) < (0.3 if classes else 0.0)
    return make_graph(
        "random",
        edges,
        count,
        batch_size=4,
        requires_grad=rng.random(count) < 0.8,
        colocation=np.where(colocated, rng.integers(0, max(1, classes), count), -1),
        forward_flops=rng.random(count) * 1e8,
        backward_flops=rng.random(count) * 2e8,
        output_bytes=rng.random(count) * 1e6,
        saved_bytes=rng.random(count) * 1e6,
        parameter_bytes=rng.random(count) * 1e5,
    )


def clock_of(graph: Graph) -> SimulatedClock:
    topology = preset("emulated-4")
    return SimulatedClock(graph, topology, make_costs(graph, topology), (4, 4, 4, 2), run_ahead=2)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 50), most=st.integers(1, 20), classes=st.integers(0, 4))
def test_expanded_placements_keep_groups_and_colocation_together(seed, count, most, classes):
    clock = clock_of(random_graph(seed, count, classes))
    quotient = make_quotient(clock, most)
    groups = quotient.clock.graph
    devices = colocate(np.random.default_rng(seed).integers(0, 4, groups.num_ops), groups)
    expanded = quotient.expand(devices)
    check_placement(Placement(expanded, 4), clock.graph, clock.topology)
    for group in range(groups.num_ops):
        assert np.unique(expanded[quotient.group_of == group]).tolist() == [devices[group]]
    assert (quotient.restrict(expanded) == devices).all()
    if classes == 0:
        assert groups.num_ops == min(most, count)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 40), most=st.integers(1, 20), classes=st.integers(0, 3))
def test_nothing_is_lost_or_counted_twice(seed, count, most, classes):
    clock = clock_of(random_graph(seed, count, classes))
    quotient = make_quotient(clock, most).clock
    for field in ("forward_s", "backward_s", "update_s", "state_bytes"):
        whole = getattr(clock.costs, field).sum(axis=0)
        assert getattr(quotient.costs, field).sum(axis=0) == pytest.approx(whole)
    for field in COSTS:
        if field != "output_bytes":
            assert getattr(quotient.graph, field).sum() == pytest.approx(getattr(clock.graph, field).sum())
    alone = np.zeros(count, np.int64)
    whole = clock.evaluate(alone)
    assert quotient.evaluate(np.zeros(quotient.graph.num_ops, np.int64)) == pytest.approx(whole)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 40))
def test_groups_of_single_ops_are_priced_as_the_ops_are(seed, count):
    clock = clock_of(random_graph(seed, count))
    quotient = make_quotient(clock, count)
    devices = np.random.default_rng(seed).integers(0, 4, count)
    assert quotient.clock.evaluate(devices) == clock.evaluate(quotient.expand(devices))


def test_a_group_sends_what_is_read_outside_it_once():
    graph = make_graph("fork", [(0, 1), (1, 2), (1, 3), (2, 4), (3, 4)], output_bytes=[1.0, 2.0, 4.0, 8.0, 16.0])
    quotient = make_quotient(clock_of(graph), 3)
    sent = {tuple(np.flatnonzero(quotient.group_of == g)): b for g, b in enumerate(quotient.clock.graph.output_bytes)}
    for ops, size in sent.items():
        inside = set(ops)
        read = {a for a, b in graph.edges if a in inside and b not in inside}
        assert size == graph.output_bytes[sorted(read)].sum()


def test_a_weight_tied_between_both_ends_leaves_its_ops_single_and_together():
    count = 30
    colocation = np.full(count, -1)
    colocation[[0, count - 1]] = 7
    graph = make_graph("tied", [(i, i + 1) for i in range(count - 1)], count, colocation=colocation, forward_flops=1e8)
    quotient = make_quotient(clock_of(graph), 6)
    groups = quotient.clock.graph
    assert 3 < groups.num_ops <= 7
    tied = quotient.group_of[[0, count - 1]]
    assert groups.colocation[tied].tolist() == [7, 7]
    assert (np.delete(groups.colocation, tied) == -1).all()


def test_moving_a_group_costs_what_moving_its_ops_costs():
    clock = clock_of(random_graph(3, 20))
    quotient = make_quotient(clock, 5)
    origin = quotient.expand(np.array([0, 1, 2, 3, 0]))
    cost = MoveCost(origin, np.arange(20.0), 0.5)
    moved = np.array([0, 1, 1, 3, 2])
    assert quotient.move_cost(cost).of(moved) == pytest.approx(cost.of(quotient.expand(moved)))
