import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from segue.placement.clock import SimulatedClock
from segue.placement.costs import Profile, make_costs
from segue.placement.errors import SegueError
from segue.placement.graph import Graph, make_graph
from segue.placement.planners import baechi
from segue.placement.planners.baechi import EarliestFirst, _program, favourite_children, m_etf, m_sct
from segue.placement.planners.heft import heft
from segue.placement.planners.list_state import ListState
from segue.placement.planners.plan import Evaluator
from segue.placement.topology import Device, Topology, uniform_links


def clock_of(graph: Graph, forward_s, speeds=(1.0, 1.0), memory_bytes=1e9, latency_s=0.0, bandwidth=1.0):
    """Ops of given seconds forward, nothing backward; a byte takes a second by default."""
    devices = tuple(Device(f"d{i}", "emulated", memory_bytes, speed) for i, speed in enumerate(speeds))
    topology = Topology("test", devices, uniform_links([d.name for d in devices], latency_s, bandwidth))
    zeros = np.zeros(graph.num_ops)
    profile = Profile(np.broadcast_to(np.asarray(forward_s, float), zeros.shape), zeros, zeros, "given")
    return SimulatedClock(graph, topology, make_costs(graph, topology, profile))


def inference(edges, num_ops=None, **costs) -> Graph:
    graph = make_graph("inference", edges, num_ops, **costs)
    return make_graph("inference", edges, num_ops, requires_grad=np.zeros(graph.num_ops, bool), **costs)


def random_clock(seed: int, count: int, num_devices: int = 3, **options):
    rng = np.random.default_rng(seed)
    edges = [(int(rng.integers(max(0, i - 6), i)), i) for i in range(1, count)]
    edges += [(int(rng.integers(0, i)), i) for i in range(1, count) if rng.random() < 0.3]
    graph = make_graph(
        "random",
        edges,
        count,
        output_bytes=rng.random(count),
        parameter_bytes=rng.integers(0, 5, count).astype(float),
        saved_bytes=rng.integers(0, 3, count).astype(float),
        colocation=np.where(rng.random(count) < 0.2, rng.integers(0, 3, count), -1),
    )
    return clock_of(graph, rng.random(count), rng.choice([0.5, 1.0, 2.0], num_devices), **options)


def placed(planner, clock) -> list[int]:
    evaluator = Evaluator(clock, 10)
    planner(evaluator, np.random.default_rng(0))
    return evaluator.devices.tolist()


def no_favourites(clock):
    return np.full(clock.graph.num_ops, -1, np.int64)


@pytest.mark.parametrize(("size", "same"), [(0.5, False), (3.0, True)])
def test_etf_sends_a_branch_away_only_if_it_starts_earlier_there(size, same):
    graph = inference([(0, 1), (0, 2)], output_bytes=[size, 0, 0])
    devices = placed(m_etf, clock_of(graph, [1.0, 2.0, 2.0]))
    assert devices[0] == devices[1] == 0
    assert (devices[2] == 0) == same


def test_etf_takes_the_op_that_can_start_first_even_where_it_ends_later():
    # The fast device is taken for a second; op 1 would end there at 1.5 s, and ends at 5 s where it can start at once.
    clock = clock_of(inference([(0, 2), (1, 2)]), [2.0, 1.0, 10.0], speeds=(2.0, 0.2))
    assert placed(m_etf, clock) == [0, 1, 0]
    assert placed(heft, clock) == [0, 0, 0]


def test_a_device_that_takes_longer_for_an_op_than_others_for_the_whole_graph_is_left_alone():
    clock = clock_of(inference([], 2), [2.0, 1.0], speeds=(2.0, 0.2))
    assert placed(m_etf, clock) == placed(m_sct, clock) == placed(heft, clock) == [0, 0]


def test_etf_takes_the_op_with_most_work_behind_it_among_equals():
    schedule = EarliestFirst(clock_of(inference([(1, 2)]), [1.0, 1.0, 5.0], speeds=(1.0,)), 1.0, np.full(3, -1))
    schedule.place()
    assert schedule.end.tolist() == [7.0, 1.0, 6.0]


def test_transfers_and_gradients_delay_a_start():
    graph = make_graph("pair", [(0, 1)], output_bytes=2.0)
    clock = clock_of(graph, [1.0, 1.0], latency_s=0.25)
    state = ListState(clock, 1.0)
    state.put(0, 0, 1.0)
    assert state.arrivals(1).tolist() == [1.0, 1.0 + 2 * 0.25 + 2 * 2.0]


def test_a_group_goes_where_its_first_op_is_and_takes_its_memory_there():
    graph = inference([(0, 1), (0, 2), (1, 3), (2, 3)], buffer_bytes=[0, 4.0, 0, 4.0], colocation=[-1, 7, -1, 7])
    clock = clock_of(graph, [1.0, 1.0, 1.0, 1.0], memory_bytes=8.0)
    for planner in (m_etf, m_sct):
        devices = placed(planner, clock)
        assert devices[1] == devices[3]
    schedule = EarliestFirst(clock, 1.0, no_favourites(clock))
    schedule.place()
    assert sorted(schedule.room) == [0.0, 8.0]


def test_the_favourite_child_is_the_one_on_the_longest_way():
    graph = inference([(0, 1), (0, 2), (1, 3), (2, 3)], output_bytes=1.0)
    favourite = favourite_children(clock_of(graph, [1.0, 5.0, 1.0, 1.0]))
    assert favourite[0] == 1
    assert favourite[1] == 3
    assert favourite[2] == favourite[3] == -1


def test_sct_keeps_a_device_for_the_favourite_child_until_it_can_start():
    # Op 3 could start on d0 at 1 s, before op 2 (2.1 s, as op 1's value comes from d1), but only at 6 s on d1.
    graph = inference([(0, 2), (1, 2), (0, 3)], output_bytes=[5.0, 0.1, 0, 0])
    clock = clock_of(graph, [1.0, 2.0, 1.0, 10.0])
    etf = EarliestFirst(clock, 1.0, no_favourites(clock))
    assert etf.place().tolist() == [0, 1, 1, 0]
    assert etf.end.tolist() == pytest.approx([1.0, 2.0, 7.0, 11.0])
    sct = EarliestFirst(clock, 1.0, np.array([2, -1, -1, -1]))
    assert sct.place().tolist() == [0, 1, 0, 0]
    assert sct.end.tolist() == pytest.approx([1.0, 2.0, 3.1, 13.1])


def test_sct_lets_an_op_go_first_whose_inputs_are_everywhere():
    # As above, but op 3 reads nothing that has to travel, and there is time for it before op 2.
    graph = inference([(0, 2), (1, 2)], 4, output_bytes=[5.0, 0.1, 0, 0])
    clock = clock_of(graph, [1.0, 2.0, 1.0, 0.5])
    sct = EarliestFirst(clock, 1.0, np.array([2, -1, -1, -1]))
    sct.place()
    assert sct.devices[3] == 0
    assert sct.end[[2, 3]].tolist() == pytest.approx([3.1, 1.5])


def test_large_graphs_are_planned_without_the_linear_program(monkeypatch):
    monkeypatch.setattr(baechi, "MOST_EDGES", 10)
    clock = random_clock(2, 30)
    assert (favourite_children(clock) == -1).all()
    assert placed(m_sct, clock) == placed(m_etf, clock)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 40))
def test_no_op_has_or_is_two_favourites(seed, count):
    clock = random_clock(seed, count)
    favourite = favourite_children(clock)
    chosen = favourite[favourite >= 0]
    assert len(np.unique(chosen)) == len(chosen)
    edges = {tuple(edge) for edge in clock.graph.edges.tolist()}
    assert all((op, int(child)) in edges for op, child in enumerate(favourite) if child >= 0)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 40), num_devices=st.integers(1, 4))
def test_nothing_overflows_by_the_planners_estimate_where_there_is_room_for_one_more_group(seed, count, num_devices):
    roomy = random_clock(seed, count, num_devices)
    memory = ListState(roomy, 1.0).memory
    clock = random_clock(seed, count, num_devices, memory_bytes=memory.sum() / num_devices + memory.max() + 1.0)
    for favourite in (no_favourites(clock), favourite_children(clock)):
        schedule = EarliestFirst(clock, 1.0, favourite)
        devices = schedule.place()
        assert (schedule.room >= 0).all()
        np.testing.assert_allclose(
            schedule.room, clock.topology.memory_bytes - np.bincount(devices, memory, num_devices)
        )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 40))
def test_schedules_keep_to_their_inputs_and_run_one_op_at_a_time(seed, count):
    clock = random_clock(seed, count)
    for favourite in (no_favourites(clock), favourite_children(clock)):
        schedule = EarliestFirst(clock, 1.0, favourite)
        devices = schedule.place()
        start = schedule.end - schedule.seconds[np.arange(count), devices]
        for op in range(count):
            assert start[op] >= schedule.arrivals(op)[devices[op]] - 1e-9
        for device in range(3):
            mine = np.flatnonzero(devices == device)
            mine = mine[np.lexsort((schedule.end[mine], start[mine]))]
            assert (start[mine][1:] >= schedule.end[mine][:-1] - 1e-9).all()


@pytest.mark.parametrize("planner", [m_etf, m_sct])
def test_the_same_graph_gives_the_same_placement(planner):
    assert placed(planner, random_clock(3, 60)) == placed(planner, random_clock(3, 60))


@pytest.mark.parametrize("planner", [m_etf, m_sct])
def test_ops_go_only_where_they_can_run(planner):
    clock = random_clock(5, 30)
    clock.costs.forward_s[4] = np.inf
    clock.costs.forward_s[4, clock.costs.device_class[1]] = 1.0
    evaluator = Evaluator(clock, 10)
    planner(evaluator, np.random.default_rng(0))
    own = clock.costs.device_class[evaluator.devices[4]]
    assert own == clock.costs.device_class[1]
    clock.costs.forward_s[4] = np.inf
    with pytest.raises(SegueError, match="no device can run op4"):
        planner(Evaluator(clock, 10), np.random.default_rng(0))


def test_the_linear_program_s_end_is_the_longest_way_where_nothing_need_be_sent():
    edges = np.array([[0, 1], [1, 2]])
    result = linprog(**_program(edges, np.array([1.0, 2.0, 3.0]), np.array([5.0, 5.0])), method="highs")
    assert result.fun == pytest.approx(6.0)


@pytest.mark.parametrize("planner", [m_etf, m_sct])
def test_500_ops_on_4_devices_are_planned_in_2_seconds_of_cpu_time(planner):
    clock = random_clock(1, 500, 4)
    clock.evaluate(np.zeros(500, np.int64))
    begin = time.process_time()
    placed(planner, clock)
    assert time.process_time() - begin < 2.0
