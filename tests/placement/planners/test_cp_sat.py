import itertools
import json
import os
import signal
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.placement.clock import SimulatedClock
from segue.placement.costs import Profile, make_costs
from segue.placement.errors import SegueError
from segue.placement.graph import make_graph
from segue.placement.max_load import MaxLoadClock
from segue.placement.planners import plan
from segue.placement.planners.cp_sat import can_manage, cp_sat, solve_max_load
from segue.placement.planners.load_problem import critical_path, load_problem, relaxation
from segue.placement.planners.plan import Evaluator, leaders
from segue.placement.topology import Device, Link, Topology
from segue.placement.workload import read_workload
from segue.placement.workload_clock import WorkloadClock
from tests.placement.workloads import BENCHMARK, needs_benchmark, random_record


def draw_clock(seed: int, kind, count: int, num_devices: int, tight: bool = False, fraction: float = 1.0):
    """A small random problem: unequal devices and links, colocation groups, whole bytes, and memory that may be tight."""
    rng = np.random.default_rng(seed)
    edges = [(a, b) for a in range(count) for b in range(a + 1, count) if rng.random() < 0.4]
    graph = make_graph(
        "random",
        edges,
        count,
        output_bytes=rng.integers(0, 6, count).astype(float),
        saved_bytes=rng.integers(0, 3, count).astype(float),
        parameter_bytes=rng.integers(0, 4, count).astype(float),
        requires_grad=rng.random(count) < 0.8,
        colocation=np.where(rng.random(count) < 0.4, rng.integers(0, 2, count), -1),
    )
    memory = graph.saved_bytes.sum() * 3 + graph.parameter_bytes.sum() * 4
    share = rng.uniform(0.2, 0.8) if tight else 10.0
    names = [f"d{i}" for i in range(num_devices)]
    topology = Topology(
        "random",
        tuple(Device(n, "emulated", np.ceil(share * memory) + 1, rng.choice([0.5, 1.0, 3.0]), 0.1) for n in names),
        tuple(Link(a, b, rng.choice([0.0, 0.2]), rng.choice([2.0, 5.0, 50.0])) for a in names for b in names if a != b),
    )
    profile = Profile(rng.random(count), 2 * rng.random(count) * graph.requires_grad, rng.random(count) / 4, "drawn")
    sizes = [4] * int(rng.integers(1, 4)) + [int(4 * fraction)]
    return kind(graph, topology, make_costs(graph, topology, profile), sizes)


def every_placement(clock):
    """All op-to-device maps that split no colocation group."""
    leader = leaders(clock.graph)
    free = np.unique(leader)
    position = np.searchsorted(free, leader)
    for row in itertools.product(range(clock.topology.num_devices), repeat=len(free)):
        yield np.array(row, np.int64)[position]


def best_fitting(clock) -> float:
    """The least value of all placements that fit, by enumeration; infinite if none does."""
    prices = (clock.evaluate(devices) for devices in every_placement(clock))
    return min((value for value, overflow in prices if overflow == 0), default=np.inf)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 7), num_devices=st.integers(1, 3), tight=st.booleans())
def test_max_load_equals_the_best_of_all_placements(seed, count, num_devices, tight):
    clock = draw_clock(seed, MaxLoadClock, count, num_devices, tight, fraction=0.5)
    best = best_fitting(clock)
    found = solve_max_load(load_problem(clock))
    assert found.proven
    assert found.value == pytest.approx(best, rel=2e-6)
    assert found.bound == pytest.approx(best, rel=2e-6)
    if found.devices is None:
        assert best == np.inf
    else:
        assert clock.evaluate(found.devices) == (pytest.approx(found.value), 0.0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 7), accelerators=st.integers(1, 2), cpus=st.integers(0, 1))
def test_workloads_are_placed_as_well_as_by_enumeration(scratch, seed, count, accelerators, cpus):
    record = random_record(seed, max(3, count), accelerators, maxCPUs=cpus)
    for node in record["nodes"] if cpus == 0 else []:
        node["supportedOnFpga"] = 1
    path = scratch / "workload.json"
    path.write_text(json.dumps(record))
    clock = WorkloadClock(read_workload(path), "max-load")
    best = best_fitting(clock)
    found = solve_max_load(load_problem(clock))
    assert found.value == pytest.approx(best, rel=2e-6)
    if found.devices is not None:
        assert clock.evaluate(found.devices) == (pytest.approx(found.value), 0.0)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 12), num_devices=st.integers(1, 4))
def test_loads_are_the_max_load_clock_s(seed, count, num_devices):
    clock = draw_clock(seed, MaxLoadClock, count, num_devices, fraction=0.25)
    devices = np.random.default_rng(seed).integers(num_devices, size=count)
    assert load_problem(clock).loads(devices).max() == pytest.approx(clock.evaluate(devices)[0])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 6), num_devices=st.integers(1, 3), tight=st.booleans())
def test_no_placement_that_fits_takes_less_than_the_bound_of_a_step(seed, count, num_devices, tight):
    clock = draw_clock(seed, SimulatedClock, count, num_devices, tight, fraction=0.5)
    evaluator = Evaluator(clock, 100)
    cp_sat(evaluator, np.random.default_rng(0))
    best = best_fitting(clock)
    assert evaluator.bound is not None
    assert 0 < evaluator.bound <= best * (1 + 1e-9)
    if evaluator.best[0] == 0:
        assert evaluator.best[1] >= best * (1 - 1e-9)


def test_the_bound_of_one_device_is_its_step_time():
    clock = draw_clock(3, SimulatedClock, 6, 1)
    bound = solve_max_load(relaxation(clock)).bound
    assert bound == pytest.approx(clock.step_time(np.zeros(6, np.int64)), rel=1e-5)


def test_the_critical_path_of_a_chain_of_one_microbatch_is_its_step_without_update():
    graph = make_graph("chain", [(0, 1), (1, 2)], forward_flops=2e10, backward_flops=4e10)
    topology = Topology("two", (Device("a", "emulated", 1e9), Device("b", "emulated", 1e9, 2.0)), links("a", "b"))
    clock = SimulatedClock(graph, topology, make_costs(graph, topology))
    assert critical_path(clock) == pytest.approx(3 * 1.5) == clock.step_time(np.array([1, 1, 1]))


def links(*names: str) -> tuple[Link, ...]:
    return tuple(Link(a, b, 0.0, 1e9) for a in names for b in names if a != b)


@pytest.mark.parametrize("kind", [SimulatedClock, MaxLoadClock])
def test_what_fits_nowhere_is_priced_and_says_so(kind):
    graph = make_graph("big", [(0, 1)], parameter_bytes=100.0, forward_flops=1e9)
    topology = Topology("two", (Device("a", "emulated", 399.0), Device("b", "emulated", 399.0)), links("a", "b"))
    clock = kind(graph, topology, make_costs(graph, topology))
    found = solve_max_load(load_problem(clock))
    assert (found.devices, found.value, found.bound, found.proven) == (None, np.inf, np.inf, True)
    evaluator = Evaluator(clock, 50)
    cp_sat(evaluator, np.random.default_rng(0))
    assert evaluator.best[0] > 0
    assert np.isfinite(evaluator.best[1])


@pytest.mark.parametrize("kind", [SimulatedClock, MaxLoadClock])
def test_one_seed_gives_one_answer(kind):
    answers = []
    for _ in range(2):
        evaluator = Evaluator(draw_clock(11, kind, 14, 3), 60)
        cp_sat(evaluator, np.random.default_rng(5))
        answers.append((evaluator.devices.tolist(), evaluator.best, evaluator.bound, evaluator.used))
    assert answers[0] == answers[1]


def test_links_that_are_slower_by_many_orders_are_left_alone():
    graph = make_graph("pair", [(0, 1)], forward_flops=2e10, output_bytes=1e9)
    slow = tuple(Link(a, b, 0.0, 1e-9) for a, b in (("a", "b"), ("b", "a")))
    topology = Topology("two", (Device("a", "emulated", 1e12), Device("b", "emulated", 1e12)), slow)
    found = solve_max_load(load_problem(MaxLoadClock(graph, topology, make_costs(graph, topology))))
    assert found.proven
    assert found.value == pytest.approx(2.0)
    apart = Topology("two", (Device("a", "emulated", 1.0), Device("b", "emulated", 1.0)), slow)
    heavy = make_graph("pair", [(0, 1)], forward_flops=2e10, output_bytes=1e9, buffer_bytes=1.0)
    forced = solve_max_load(load_problem(MaxLoadClock(heavy, apart, make_costs(heavy, apart))))
    assert forced.value > 1e17
    assert not forced.proven


def test_an_unfinished_search_still_bounds():
    clock = draw_clock(2, MaxLoadClock, 40, 4)
    start = np.zeros(40, np.int64)
    found = solve_max_load(load_problem(clock), budget_s=0.05, hint=start)
    assert not found.proven
    assert 0 < found.bound < found.value <= clock.evaluate(start)[0] * (1 + 1e-9)


def test_solutions_are_reported_as_they_are_found_each_better_than_the_last():
    problem = load_problem(draw_clock(4, MaxLoadClock, 12, 3))
    seen = []
    found = solve_max_load(problem, on_solution=seen.append)
    loads = [problem.loads(devices).max() for devices in seen]
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(loads))
    np.testing.assert_array_equal(seen[-1], found.devices)


@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_ctrl_c_ends_a_search_and_means_the_same_after_it():
    problem = load_problem(draw_clock(2, MaxLoadClock, 40, 4))
    seen = []

    def interrupt(devices):
        seen.append(devices)
        if len(seen) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        solve_max_load(problem, budget_s=1e6, hint=np.zeros(40, np.int64), on_solution=interrupt)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_graphs_that_are_too_large_are_refused():
    graph = make_graph("long", [(i, i + 1) for i in range(1999)])
    names = [f"d{i}" for i in range(8)]
    topology = Topology("eight", tuple(Device(name, "emulated", 1e9) for name in names), links(*names))
    clock = SimulatedClock(graph, topology, make_costs(graph, topology))
    assert not can_manage(clock)
    with pytest.raises(SegueError, match="2000 ops on 8 devices are too many: at most 20000 decisions, got 128000"):
        cp_sat(Evaluator(clock, 10), np.random.default_rng(0))


def test_the_latency_of_workloads_is_refused(tmp_path):
    path = tmp_path / "workload.json"
    path.write_text(json.dumps(random_record(1)))
    clock = WorkloadClock(read_workload(path), "latency")
    assert not can_manage(clock)
    with pytest.raises(SegueError, match="has no model of a workload's latency"):
        cp_sat(Evaluator(clock, 10), np.random.default_rng(0))


def test_a_group_that_no_device_can_run_is_named():
    clock = draw_clock(1, MaxLoadClock, 4, 2)
    problem = load_problem(clock)
    problem.seconds[2] = np.inf
    with pytest.raises(SegueError, match="no device can run op"):
        solve_max_load(problem)


def test_without_or_tools_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ortools.sat.python", None)
    with pytest.raises(SegueError, match=r"pip install 'segue\[planners\]'"):
        solve_max_load(load_problem(draw_clock(1, MaxLoadClock, 4, 2)))


@pytest.mark.slow
@needs_benchmark
@pytest.mark.parametrize("name", ["OperatorGraphs/bert_l-3_inference", "LayerGraphs_12GBps/bert24_training"])
def test_a_public_workload_is_solved_to_its_proven_optimum(name):
    clock = WorkloadClock(read_workload(BENCHMARK / "throughput" / f"{name}.json"), "max-load")
    evaluator = Evaluator(clock, 1000)
    cp_sat(evaluator, np.random.default_rng(0))
    assert evaluator.best[0] == 0
    assert evaluator.bound == pytest.approx(evaluator.best[1], rel=2e-6)
    known = {"OperatorGraphs/bert_l-3_inference": 21.9084}.get(name, np.inf)
    assert 1e3 * evaluator.best[1] <= known * (1 + 1e-5)


@pytest.mark.parametrize("kind", [SimulatedClock, MaxLoadClock])
def test_a_budget_of_seconds_takes_the_place_of_the_deterministic_one(kind, monkeypatch):
    from segue.placement.planners import cp_sat as module

    limits = []
    solve = solve_max_load

    def record(*args, wall_s=None, **options):
        limits.append(wall_s)
        return solve(*args, wall_s=wall_s, **options)

    monkeypatch.setattr(module, "solve_max_load", record)
    clock = draw_clock(3, kind, 5, 2)
    free, limited = plan("cp-sat", clock), plan("cp-sat", clock, budget_s=100.0)
    assert limited.value_s == free.value_s
    half = len(limits) // 2
    assert limits[:half] == [None] * half
    assert all(0 < wall <= 100.0 for wall in limits[half:])


def test_the_solver_stops_when_its_wall_seconds_are_over(monkeypatch):
    pytest.importorskip("ortools")
    from ortools.sat.python import cp_model

    seen = []
    solve = cp_model.CpSolver.solve

    def record(self, *args):
        seen.append((self.parameters.max_time_in_seconds, self.parameters.max_deterministic_time))
        return solve(self, *args)

    monkeypatch.setattr(cp_model.CpSolver, "solve", record)
    problem = load_problem(draw_clock(3, MaxLoadClock, 5, 2))
    solve_max_load(problem, budget_s=7.0)
    solve_max_load(problem, wall_s=3.0)
    assert seen[0][1] == 7.0
    assert seen[1][0] <= 3.0
    assert seen[1][1] == float("inf")


def test_without_time_the_answer_is_the_one_it_would_have_begun_at():
    clock = draw_clock(3, SimulatedClock, 5, 2)
    assert plan("cp-sat", clock, budget_s=1e-9).value_s <= plan("contiguous", clock).value_s
