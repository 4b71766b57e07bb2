import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.placement.clock import SimulatedClock
from segue.placement.costs import make_costs
from segue.placement.errors import SegueError
from segue.placement.graph import make_graph
from segue.placement.placement import Placement, check_placement
from segue.placement.planners import plan
from segue.placement.topology import Device, Topology, uniform_links

pytest.importorskip("pymetis")


def topology(speeds, memory_bytes=1e12) -> Topology:
    devices = tuple(Device(f"d{i}", "emulated", memory_bytes, speed) for i, speed in enumerate(speeds))
    return Topology("test", devices, uniform_links([d.name for d in devices], 1e-4, 1e9))


def clock_of(graph, devices, microbatches=4) -> SimulatedClock:
    return SimulatedClock.for_batch(graph, devices, make_costs(graph, devices), microbatches, microbatches)


def chain(count, **given):
    return make_graph("chain", [(i, i + 1) for i in range(count - 1)], count, **given)


def test_the_cheap_edge_is_cut():
    edges = [(i, j) for block in (0, 5) for i in range(block, block + 5) for j in range(i + 1, block + 5)]
    graph = make_graph("blocks", [*edges, (4, 5)], 10, forward_flops=1e9, output_bytes=1e6)
    devices = plan("metis", clock_of(graph, topology((1.0, 1.0)))).devices
    assert devices.tolist() in ([0] * 5 + [1] * 5, [1] * 5 + [0] * 5)


def test_parts_are_in_proportion_to_speed():
    graph = chain(64, forward_flops=1e9, output_bytes=1.0)
    devices = plan("metis", clock_of(graph, topology((1.0, 4.0, 3.0)), 16)).devices
    assert np.bincount(devices).tolist() == pytest.approx([8, 32, 24], abs=3)


def test_memory_is_balanced_where_time_alone_does_not_fit():
    graph = chain(40, forward_flops=[1e8] * 20 + [1e9] * 20, parameter_bytes=[4e6] * 20 + [1e5] * 20)
    clock = clock_of(graph, topology((1.0, 1.0), memory_bytes=1.8e8))
    assert plan("metis", clock).feasible


def test_one_seed_gives_one_plan():
    rng = np.random.default_rng(0)
    graph = chain(60, forward_flops=rng.random(60) * 1e9, output_bytes=rng.random(60) * 1e6)
    clock = clock_of(graph, topology((1.0, 0.5, 2.0, 1.0, 1.0)))
    first, second = (plan("metis", clock, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.devices, second.devices)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_graph_gets_a_valid_placement(data, problems):
    problem = data.draw(problems)
    found = plan("metis", problem.clock, seed=data.draw(st.integers(0, 9)), evaluations=20)
    check_placement(Placement(found.devices), problem.graph, problem.topology)
    assert 1 <= found.evaluations <= 20


@pytest.mark.parametrize("count", [1, 2, 7, 200])
def test_many_and_very_unequal_devices_are_managed(count):
    devices = topology([10.0**-i for i in range(12)] + [1.0] * 52)
    graph = chain(count, forward_flops=1e9, output_bytes=1e3)
    check_placement(Placement(plan("metis", clock_of(graph, devices)).devices), graph, devices)


def test_colocation_groups_stay_whole():
    colocation = np.where(np.arange(30) % 7 == 0, 3, -1)
    graph = chain(30, forward_flops=1e9, colocation=colocation)
    devices = topology((1.0, 1.0, 1.0))
    check_placement(Placement(plan("metis", clock_of(graph, devices)).devices), graph, devices)


@pytest.mark.parametrize("never", [np.inf, 1e4])
def test_ops_that_only_the_first_device_runs_are_there(never):
    graph, devices = chain(12, forward_flops=1e9), topology((1.0, 1.0, 1.0))
    seconds = np.full((12, 3), [50.0, 1.0, 1.0])
    seconds[[0, 5, 6], 1:] = never
    costs = make_costs(graph, devices)
    zero = np.zeros((12, 3))
    special = replace(costs, forward_s=seconds, backward_s=zero, update_s=zero, device_class=np.arange(3))
    clock = SimulatedClock(graph, devices, special)
    found = plan("metis", clock)
    assert found.value_s < 300
    assert (found.devices[[0, 5, 6]] == 0).all()
    for name in ("equal-time", "speed-proportional", "round-robin", "random", "accelerate-balanced", "single:d1"):
        check_placement(Placement(plan(name, clock).devices), graph, devices)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymetis", None)
    with pytest.raises(SegueError, match=r"pymetis is missing; pip install 'segue\[planners\]'"):
        plan("metis", clock_of(chain(4), topology((1.0, 1.0))))
