import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.placement.coarsen import coarsen
from segue.placement.errors import SegueError
from segue.placement.graph import make_graph


def random_graph(rng, num_ops, extra=0.6, colocation=None):
    edges = [(int(rng.integers(max(0, op - 6), op)), op) for op in range(1, num_ops) if rng.random() < 0.95]
    for _ in range(int(extra * num_ops)):
        a, b = sorted(rng.choice(num_ops, 2, replace=False))
        edges.append((int(a), int(b)))
    modules = [f"net.block{op * 5 // num_ops}.layer{op % 3}" for op in range(num_ops)]
    return make_graph(
        "random",
        edges,
        num_ops,
        modules=modules,
        colocation=colocation,
        forward_flops=rng.lognormal(20, 1, num_ops),
        output_bytes=rng.lognormal(10, 1, num_ops),
        parameter_bytes=rng.lognormal(8, 2, num_ops),
    )


def has_cycle(graph, group_of):
    pairs = {(group_of[a], group_of[b]) for a, b in graph.edges if group_of[a] != group_of[b]}
    left = set(group_of.tolist())
    while left:
        free = {g for g in left if not any(b == g and a in left for a, b in pairs)}
        if not free:
            return True
        left -= free
    return False


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), num_ops=st.integers(2, 60), most=st.integers(1, 20))
def test_groups_form_no_cycle_and_keep_the_limit(seed, num_ops, most):
    graph = random_graph(np.random.default_rng(seed), num_ops)
    groups = coarsen(graph, most)
    assert groups.num_groups == min(most, num_ops)
    assert not has_cycle(graph, groups.group_of)
    first = groups.first_op()
    assert (np.diff(first) > 0).all()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), num_ops=st.integers(4, 40), most=st.integers(1, 12), classes=st.integers(1, 4))
def test_colocated_ops_share_a_group(seed, num_ops, most, classes):
    rng = np.random.default_rng(seed)
    colocation = np.where(rng.random(num_ops) < 0.3, rng.integers(0, classes, num_ops), -1)
    groups = coarsen(random_graph(rng, num_ops, colocation=colocation), most)
    assert groups.num_groups <= max(1, most)
    for label in range(classes):
        assert len(set(groups.group_of[colocation == label])) <= 1


def test_a_tied_weight_does_not_swallow_the_model():
    colocation = np.full(20, -1)
    colocation[[0, 19]] = 0
    graph = make_graph("tied", [(i, i + 1) for i in range(19)], forward_flops=1e9, colocation=colocation)
    groups = coarsen(graph, 6)
    assert groups.num_groups == 6
    assert np.flatnonzero(groups.group_of == groups.group_of[0]).tolist() == [0, 19]


def test_units_run_from_coarse_to_single_groups():
    groups = coarsen(random_graph(np.random.default_rng(3), 50), 30)
    sizes = [len(unit) for unit in groups.units]
    assert sizes[0] > 1
    assert {int(unit[0]) for unit in groups.units if len(unit) == 1} == set(range(30))
    assert len({tuple(unit) for unit in groups.units}) == len(groups.units)


def test_branches_of_one_module_merge_before_strangers():
    edges = [(0, 1), (1, 2), (0, 3), (3, 4), (2, 5), (4, 5)]
    modules = ["stem", "left", "left", "right", "right", "head"]
    graph = make_graph("branches", edges, modules=modules, forward_flops=1e9, output_bytes=1e3)
    group_of = coarsen(graph, 4).group_of
    assert group_of[1] == group_of[2]
    assert group_of[3] == group_of[4]
    assert group_of[1] != group_of[3]


def test_a_limit_below_one_is_refused():
    with pytest.raises(SegueError, match="max_groups must be >= 1, got 0"):
        coarsen(make_graph("one", [], 1), 0)


def test_four_times_the_ops_take_far_less_than_sixteen_times_as_long():
    def seconds(ops: int) -> float:
        graph, times = random_graph(np.random.default_rng(0), ops, extra=0.3), []
        for _ in range(3):
            start = time.perf_counter()
            assert coarsen(graph, 48).num_groups == 48
            times.append(time.perf_counter() - start)
        return min(times)

    seconds(100)  # compiles
    assert seconds(4800) < 10 * seconds(1200)
