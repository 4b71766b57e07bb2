import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.placement.clock import SimulatedClock
from segue.placement.costs import make_costs
from segue.placement.errors import SegueError
from segue.placement.graph import Graph, make_graph
from segue.placement.placement import Placement, check_placement
from segue.placement.planners import MANUAL, expand, plan
from segue.placement.planners.contiguous import make_line
from segue.placement.planners.manual import layers
from segue.placement.planners.moves import Moves, chains, module_blocks
from segue.placement.planners.split import Line, balanced, prefix_sums, split
from segue.placement.topology import Device, Link, Topology, uniform_links

MIB = 2.0**20


def topology(speeds=(1.0, 2.0, 0.5), memory_bytes=1e12) -> Topology:
    devices = tuple(Device(f"d{i}", "emulated", memory_bytes, speed, 1e-4) for i, speed in enumerate(speeds))
    return Topology("test", devices, uniform_links([d.name for d in devices], 1e-4, 1e8))


def random_graph(seed: int, count: int, **costs) -> Graph:
    rng = np.random.default_rng(seed)
    edges = [(int(rng.integers(max(0, i - 4), i)), i) for i in range(1, count)]
    edges += [(int(rng.integers(0, i)), i) for i in range(1, count) if rng.random() < 0.3]
    colocation = np.where(rng.random(count) < 0.2, rng.integers(0, 2, count), -1)
    values = {
        "forward_flops": rng.random(count) * 1e8,
        "backward_flops": rng.random(count) * 2e8,
        "output_bytes": rng.random(count) * 1e6,
        "saved_bytes": rng.random(count) * 1e6,
        "parameter_bytes": rng.integers(0, 2, count) * 1e5,
    }
    return make_graph("random", edges, count, colocation=colocation, **(values | costs))


def clock_of(graph: Graph, devices: Topology, microbatches: int = 4) -> SimulatedClock:
    return SimulatedClock.for_batch(graph, devices, make_costs(graph, devices), microbatches, microbatches)


def brute_force(line: Line) -> float:
    """Every way to cut the ops into runs on devices in order, by enumeration."""
    num_devices, count = line.seconds.shape[0], line.seconds.shape[1] - 1
    least = np.inf
    for positions in itertools.combinations_with_replacement(range(num_devices), count):
        runs = [(k, positions.index(k), positions.index(k) + positions.count(k)) for k in sorted(set(positions))]
        slowest = 0.0
        for number, (k, i, j) in enumerate(runs):
            seconds = line.fixed[k] + line.seconds[k, j] - line.seconds[k, i]
            if number:
                seconds += line.cross[runs[number - 1][0], k, i]
            if line.held[k, j] - line.held[k, i] + line.received[k, i] > line.capacity[k]:
                seconds = np.inf
            slowest = max(slowest, seconds)
        least = min(least, slowest)
    return least


@pytest.mark.parametrize("seed", range(6))
def test_split_is_as_good_as_the_best_of_all_splits(seed):
    count = 7
    graph = random_graph(seed, count)
    memory = 6e6 if seed % 2 else 1e12
    clock = clock_of(graph, topology((1.0, 2.0, 0.5), memory))
    line = make_line(clock, np.random.default_rng(seed).permutation(3))
    bottleneck, positions = split(line)
    assert bottleneck == pytest.approx(brute_force(line))
    if np.isfinite(bottleneck):
        assert np.all(np.diff(positions) >= 0)


def test_cross_counts_every_value_once_at_each_cut_and_both_directions():
    graph = make_graph("skip", [(0, 1), (1, 2), (0, 2)], output_bytes=[1e6, 2e6, 5e6])
    links = (Link("d0", "d1", 0.5, 1e6), Link("d1", "d0", 0.25, 2e6))
    devices = Topology("two", tuple(Device(f"d{i}", "emulated", 1e12) for i in range(2)), links)
    line = make_line(clock_of(graph, devices, 1), np.arange(2))
    assert line.cross[0, 1].tolist() == pytest.approx([0, 1 + 0.5 + 0.5 + 0.25, 3 + 1.5 + 0.5 + 0.25, 0])


def test_balanced_matches_the_best_bottleneck():
    weights = np.array([5.0, 1, 1, 1, 5, 1])
    devices = balanced(np.array([weights], float), np.zeros(3, np.int64))
    assert np.bincount(devices, weights, 3).max() == 6.0


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 12), num_devices=st.integers(1, 5), equal=st.booleans())
def test_balanced_is_the_split_that_the_dynamic_program_finds(seed, count, num_devices, equal):
    rng = np.random.default_rng(seed)
    weights = np.outer([1.0] if equal else 1 / rng.uniform(1, 4, num_devices), rng.integers(0, 4, count))
    row_of = np.zeros(num_devices, np.int64) if equal else rng.permutation(num_devices)
    none = np.zeros((num_devices, count + 1))
    line = Line(
        seconds=prefix_sums(weights[row_of]),
        fixed=np.zeros(num_devices),
        cross=np.zeros((num_devices, num_devices, count + 1)),
        held=none,
        received=none,
        capacity=np.full(num_devices, np.inf),
    )
    assert balanced(weights, row_of).tolist() == split(line)[1].tolist()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 30), microbatches=st.integers(1, 4))
def test_every_planner_returns_a_valid_placement_and_its_price(seed, count, microbatches):
    devices = topology()
    graph = random_graph(seed, count)
    clock = clock_of(graph, devices, microbatches)
    for name in expand(["all"], devices):
        found = plan(name, clock, seed=seed, evaluations=30)
        check_placement(Placement(found.devices, microbatches), graph, devices, name)
        assert (found.value_s, found.overflow_bytes) == clock.evaluate(found.devices)
        assert 1 <= found.evaluations <= 30


@pytest.mark.parametrize("name", ["random", "contiguous", "interleaved", "heft", "annealing", "local-search"])
def test_one_seed_gives_one_plan(name):
    clock = clock_of(random_graph(3, 40), topology((1.0, 2.0, 0.5, 1.0, 0.7)))
    first, second = (plan(name, clock, seed=7, evaluations=60) for _ in range(2))
    np.testing.assert_array_equal(first.devices, second.devices)


@pytest.mark.parametrize("name", ["annealing", "local-search"])
@pytest.mark.parametrize("memory_bytes", [2e7, 1e12])
def test_searches_are_never_worse_than_the_manual_configurations(name, memory_bytes):
    devices = topology(memory_bytes=memory_bytes)
    clock = clock_of(random_graph(5, 60), devices)
    manual = [plan(start, clock) for start in expand(["manual"], devices)]
    best = min((p.overflow_bytes, p.value_s) for p in manual)
    found = plan(name, clock, evaluations=200)
    assert (found.overflow_bytes, found.value_s) <= best
    assert found.evaluations == 200


def test_annealing_finds_the_best_placement_of_a_small_graph():
    devices = topology((1.0, 2.0))
    clock = clock_of(random_graph(8, 9), devices)
    every = (np.array(row, np.int64) for row in itertools.product(range(2), repeat=9))
    colocation = clock.graph.colocation
    valid = (row for row in every if all(len(set(row[colocation == g])) == 1 for g in set(colocation) - {-1}))
    best = min(clock.step_time(row) for row in valid)
    assert plan("annealing", clock, evaluations=600).value_s == pytest.approx(best)


def test_planners_prefer_what_fits_memory():
    graph = random_graph(1, 24, parameter_bytes=MIB, saved_bytes=0.0, output_bytes=1e6)
    devices = topology((1.0, 1.0, 50.0), memory_bytes=4 * MIB * 22)
    clock = clock_of(graph, devices)
    assert not plan("single:d2", clock).feasible
    for name in ("contiguous", "heft", "annealing", "local-search"):
        assert plan(name, clock, evaluations=100).feasible, name


def test_equal_layers_counts_leaf_modules_with_parameters():
    modules = ("features.conv", "features.relu", "features.conv2", "", "head", "")
    graph = make_graph("modules", [(i, i + 1) for i in range(5)], modules=modules, parameter_bytes=[4.0, 0, 8, 0, 2, 0])
    assert layers(graph).tolist() == [0, 0, 1, 1, 2, 2]
    clock = clock_of(graph, topology((1.0, 1.0, 1.0)))
    assert plan("equal-layers", clock).devices.tolist() == [0, 0, 1, 1, 2, 2]


def test_equal_layers_counts_ops_where_there_are_no_modules():
    clock = clock_of(make_graph("bare", [(i, i + 1) for i in range(5)]), topology((1.0, 1.0, 1.0)))
    assert plan("equal-layers", clock).devices.tolist() == [0, 0, 1, 1, 2, 2]


def test_speed_proportional_gives_the_fast_device_more():
    graph = make_graph("chain", [(i, i + 1) for i in range(29)], forward_flops=1e8)
    devices = plan("speed-proportional", clock_of(graph, topology((1.0, 4.0, 1.0)))).devices
    assert np.bincount(devices).tolist() == [5, 20, 5]


def test_interleaved_gives_every_device_several_runs_that_take_equally_long():
    graph = make_graph("chain", [(i, i + 1) for i in range(47)], forward_flops=1e8)
    found = plan("interleaved", clock_of(graph, topology((1.0, 1.0, 1.0))))
    runs = np.split(found.devices, np.flatnonzero(np.diff(found.devices)) + 1)
    assert found.evaluations == 6
    assert {len(run) for run in runs} <= {4, 8, 16}
    for device in range(3):
        assert sum(len(run) for run in runs if run[0] == device) == 16


def test_interleaved_keeps_both_ends_of_long_connections_on_one_device():
    edges = [(i, i + 1) for i in range(11)] + [(i, 11 - i) for i in range(5)]
    graph = make_graph("u", edges, forward_flops=1e8, output_bytes=[1e8] * 6 + [1.0] * 6)
    devices = plan("interleaved", clock_of(graph, topology((1.0, 1.0)))).devices
    assert devices.tolist() == devices[::-1].tolist()


def test_heft_uses_both_of_two_equal_branches():
    graph = make_graph("fork", [(0, 1), (0, 2), (1, 3), (2, 3)], forward_flops=[0, 1e10, 1e10, 0], output_bytes=10.0)
    devices = plan("heft", clock_of(graph, topology((1.0, 1.0)), 1)).devices
    assert devices[1] != devices[2]


def test_moves_keep_colocation_whole_and_move_something():
    graph = random_graph(2, 30)
    moves = Moves(clock_of(graph, topology()))
    rng = np.random.default_rng(0)
    devices = np.zeros(30, np.int64)
    for _ in range(200):
        moved = moves.draw(devices, rng)
        check_placement(Placement(moved, 1), graph, topology())
        assert (moved != devices).any()
        devices = moved


def test_branches_are_chains_and_modules():
    edges = [(0, 1), (1, 2), (0, 3), (3, 4), (2, 5), (4, 5)]
    graph = make_graph("fork", edges, modules=("stem", "b.left", "b.left", "b.right", "b.right", "head"))
    assert [chain.tolist() for chain in chains(graph)] == [[1, 2], [3, 4]]
    assert [block.tolist() for block in module_blocks(graph)] == [[1, 2, 3, 4], [1, 2], [3, 4]]


def test_unknown_names_say_what_is_known():
    clock = clock_of(random_graph(0, 5), topology())
    with pytest.raises(SegueError, match=r"planner 'best'.*known: single:<device>, file:<path>, accelerate-balanced"):
        plan("best", clock)
    with pytest.raises(SegueError, match="unknown device 'd9'; known: d0, d1, d2"):
        expand(["manual", "single:d9"], topology())
    with pytest.raises(SegueError, match="evaluations must be >= 1, got 0"):
        plan("annealing", clock, evaluations=0)


def test_manual_is_written_out_for_every_device():
    names = expand(["manual"], topology())
    assert names[:3] == ["single:d0", "single:d1", "single:d2"]
    assert names[3:] == list(MANUAL[1:])
