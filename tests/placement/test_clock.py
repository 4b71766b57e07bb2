from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.placement.clock import SimulatedClock, StepReport
from segue.placement.costs import make_costs
from segue.placement.graph import make_graph
from segue.placement.placement import Placement
from segue.placement.presets import preset
from segue.placement.topology import Device, Topology, uniform_links


def chain_clock(memory_bytes=1e9, **costs):
    graph = make_graph("chain", [(0, 1), (1, 2)], batch_size=4, forward_flops=1e9, backward_flops=2e9, **costs)
    devices = tuple(Device(f"d{i}", "emulated", memory_bytes) for i in range(2))
    topology = Topology("two", devices, uniform_links(["d0", "d1"], 0.01, 1e6))
    return SimulatedClock(graph, topology, make_costs(graph, topology))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_report_agrees_with_its_trace(problems, data):
    problem = data.draw(problems)
    clock = problem.clock
    report = clock.step(problem.placement, timeline=True)
    _, trace = clock.trace(problem.devices)
    assert report.step_time_s == clock.step_time(problem.devices) == trace.step_time
    np.testing.assert_allclose(report.busy_s + report.waiting_s, report.step_time_s)
    static = np.zeros(problem.topology.num_devices)
    np.add.at(static, problem.devices, clock.costs.state_bytes)
    working = clock.stage_costs(clock.stages(problem.devices), problem.devices).working_bytes
    np.testing.assert_allclose(report.peak_bytes, static + trace.peak_live_bytes + working)
    seconds, overflow = clock.evaluate(problem.devices)
    assert seconds == report.step_time_s
    assert overflow == pytest.approx(report.overflow_bytes.max())
    assert report.feasible == (overflow == 0)
    names = [device.name for device in problem.topology.devices]
    for device, name in enumerate(names):
        bars = sum(span.end_s - span.start_s for span in report.timeline if span.lane == name)
        assert bars == pytest.approx(report.busy_s[device], abs=1e-9)
        sent = sum(span.end_s - span.start_s for span in report.timeline if span.lane.startswith(f"{name}->"))
        assert sent == pytest.approx(report.transfer_s[device], abs=1e-9)
    assert max(span.end_s for span in report.timeline) == pytest.approx(report.step_time_s, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_pricing_twice_gives_the_same_times(problems, data):
    problem = data.draw(problems)
    first, again = problem.clock.trace(problem.devices)[1], problem.clock.trace(problem.devices)[1]
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_transfer_takes_latency_and_bytes_over_bandwidth():
    clock = chain_clock(output_bytes=5e4)
    together, apart = clock.step_time(np.array([0, 0, 0])), clock.step_time(np.array([0, 0, 1]))
    assert together == pytest.approx(3 * 0.05 + 3 * 0.1)
    assert apart - together == pytest.approx(2 * (0.01 + 0.05))


def test_memory_counts_state_what_is_saved_what_arrives_and_what_the_largest_op_works_in():
    clock = chain_clock(parameter_bytes=100.0, buffer_bytes=7.0, saved_bytes=1000.0, output_bytes=30.0)
    report = clock.step(Placement(np.array([0, 0, 1])))
    working = 2 * 100 + 30 + 30  # the gradients of its parameters, a copy, those of its result and of its input
    unread = 30  # the gradient on the first device, the value on the second
    first = 2 * (4 * 100 + 7 + 1000) + working + unread
    assert report.peak_bytes.tolist() == [first, 4 * 100 + 7 + 1000 + 30 + working + unread]


def test_messages_take_room_until_they_are_read():
    fast_and_slow = chain_clock(output_bytes=30.0)
    column = np.array([[0.0], [0.0], [1.0]])
    costs = replace(fast_and_slow.costs, forward_s=column, backward_s=column, device_class=np.zeros(2, np.int64))
    clock = SimulatedClock(fast_and_slow.graph, fast_and_slow.topology, costs, sizes=(1,) * 8)
    devices = np.array([0, 0, 1])
    stages, trace = clock.trace(devices)
    live = clock.stage_costs(stages, devices).live_bytes
    # Three microbatches run ahead, and all have been sent when the first arrives.
    assert trace.peak_live_bytes[1] == live[1] + 3 * 30


def test_a_gradient_takes_room_until_the_last_one_that_its_stage_waits_for_has_come():
    # A value is read on its own device at once and, after a long way, on another.
    graph = make_graph("fork", [(0, 1), (0, 2), (1, 3), (2, 3)], 4, output_bytes=[30.0, 1.0, 2.0, 4.0])
    topology = chain_clock().topology
    clock = SimulatedClock(graph, topology, make_costs(graph, topology))
    devices = np.array([0, 1, 0, 0])
    stages, trace = clock.trace(devices)
    assert stages.stage_of.tolist() == [0, 1, 2, 3]
    assert stages.grad_parts.tolist() == [30.0, 30.0, 2.0, 1.0]
    # Op 2's gradient of the first value waits there while that of op 1 is on its way, which takes room as well.
    assert trace.peak_live_bytes[0] == 30.0 + 30.0


def test_what_does_not_fit_is_reported_not_refused():
    clock = chain_clock(memory_bytes=1000.0, saved_bytes=400.0)
    report = clock.step(Placement(np.array([0, 0, 0])))
    assert not report.feasible
    assert report.overflow_bytes.tolist() == [200.0, 0.0]
    assert clock.evaluate(np.array([0, 0, 0]))[1] == 200.0
    assert clock.evaluate(np.array([0, 1, 1]))[1] == 0.0


def test_reports_without_a_timeline_hold_no_bars():
    clock = chain_clock()
    report = clock.step(Placement(np.zeros(3, np.int64)))
    assert isinstance(report, StepReport)
    assert (report.timeline, report.source) == ((), "simulated")


@pytest.mark.parametrize("microbatches", range(1, 9))
def test_microbatches_that_do_not_come_out_even_cost_what_their_samples_cost(microbatches):
    graph = make_graph("one", [], 1, batch_size=3, forward_flops=2e10, backward_flops=4e10)
    topology = Topology("one", (Device("d0", "emulated", 1e9),))
    size = -(-10 // microbatches)
    clock = SimulatedClock.for_batch(
        graph.scaled(size), topology, make_costs(graph.scaled(size), topology), 10, microbatches
    )
    assert sum(clock.sizes) == 10
    assert clock.microbatches == len(clock.sizes)
    assert clock.step_time(np.zeros(1, np.int64)) == pytest.approx(10 * (1 + 2) / 3)


def test_a_slower_device_takes_as_much_longer_as_it_is_slower():
    topology = preset("emulated-4")
    graph = make_graph("one", [], 1, forward_flops=1e9)
    clock = SimulatedClock(graph, topology, make_costs(graph, topology))
    times = [clock.step_time(np.array([d])) for d in range(4)]
    work = (np.array(times) - 2 * topology.overhead_s) * topology.speed
    np.testing.assert_allclose(work, work[0])
