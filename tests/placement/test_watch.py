from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.placement.clock import SimulatedClock, Span, StepReport
from segue.placement.costs import Profile, make_costs
from segue.placement.graph import make_graph
from segue.placement.placement import Placement
from segue.placement.topology import Device, Topology, uniform_links
from segue.placement.transfers import step_transfers
from segue.placement.watch import (
    LinkBottleneck,
    MemoryPressure,
    carried_values,
    held_bytes,
    link_bottlenecks,
    memory_pressure,
    watch,
)

MIB = 2.0**20
NAMES = ["embed", "block", "head", "loss"]


def a_clock(bandwidth: float = 1e12, memory: float = 1e9) -> SimulatedClock:
    """A chain of four ops of a second each way, two microbatches; `head` holds most."""
    graph = make_graph(
        "chain",
        [(0, 1), (1, 2), (2, 3)],
        batch_size=4,
        names=NAMES,
        parameter_bytes=np.array([1.0, 1.0, 4.0, 0.0]) * MIB,
        saved_bytes=np.array([2.0, 1.0, 1.0, 1.0]) * MIB,
        output_bytes=np.array([1.0, 2.0, 1.0, 0.0]) * MIB,
    )
    names = ["d0", "d1"]
    devices = tuple(Device(name, "emulated", memory) for name in names)
    topology = Topology("two", devices, uniform_links(names, 0.0, bandwidth))
    profile = Profile(np.ones(4), np.ones(4), np.zeros(4), "measured")
    return SimulatedClock(graph, topology, make_costs(graph, topology, profile), (4, 4))


HALVES = Placement(np.array([0, 0, 1, 1]), 2)


def a_report(peak: list[float], step_time_s: float = 12.0, timeline: tuple[Span, ...] = ()) -> StepReport:
    two = np.ones(2)
    return StepReport(step_time_s, 8 * two, two, np.array(peak), np.full(2, 100 * MIB), "emulated", timeline)


def test_a_device_that_is_nearly_full_is_named_with_the_ops_that_hold_most() -> None:
    (found,) = memory_pressure(a_report([50 * MIB, 93 * MIB]), a_clock(), HALVES)
    assert (found.device, found.overflows) == ("d1", False)
    # Parameters, gradients and two moments: four times four; and what one microbatch under way has saved.
    assert found.holders == (("head", 17 * MIB), ("loss", MIB))
    assert str(found) == (
        "memory of d1 nearly full: 93.0 MiB of 100.0 MiB (93%); most is held by head (17.0 MiB), loss (1.0 MiB)"
    )


def test_an_overflow_is_told_apart_and_the_fullest_device_comes_first() -> None:
    found = memory_pressure(a_report([91 * MIB, 120 * MIB]), a_clock(), HALVES)
    assert [(pressure.device, pressure.overflows) for pressure in found] == [("d1", True), ("d0", False)]
    assert str(found[0]).startswith("memory of d1 overflows: 120.0 MiB of 100.0 MiB (120%)")


def test_there_is_no_warning_where_there_is_room() -> None:
    assert watch(a_report([89 * MIB, 10 * MIB]), a_clock(), HALVES) == ()


def test_what_ops_hold_is_counted_at_the_moment_when_their_device_holds_most() -> None:
    clock = a_clock()
    timeline = (
        Span("d0", "F0 embed", 0.0, 2.0),
        Span("d0", "F1 embed", 2.0, 4.0),
        Span("d1", "F0 head", 2.0, 4.0),
        Span("d1", "B0 head", 4.0, 6.0),
        Span("d0", "B0 embed", 6.0, 8.0),
        Span("d1", "F1 head", 6.0, 8.0),
        Span("d1", "B1 head", 8.0, 10.0),
        Span("d0", "B1 embed", 10.0, 12.0),
    )
    # Both microbatches are under way on d0, one at a time on d1.
    np.testing.assert_array_equal(held_bytes(timeline, clock, HALVES), [8 * MIB, 6 * MIB, 17 * MIB, MIB])


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_what_ops_hold_and_what_arrived_is_the_simulators_peak(problems, data) -> None:
    problem = data.draw(problems)
    # Without transfers nothing arrives.
    devices = np.full(problem.graph.num_ops, data.draw(st.integers(0, problem.topology.num_devices - 1)))
    rng = np.random.default_rng(0)
    count = problem.graph.num_ops
    profile = Profile(rng.uniform(0.5, 2, count), rng.uniform(0.5, 2, count), np.zeros(count), "measured")
    costs = make_costs(problem.graph, problem.topology, profile)
    clock = SimulatedClock(problem.graph, problem.topology, costs, problem.clock.sizes)
    report = clock.step(Placement(devices, clock.microbatches), timeline=True)
    held = held_bytes(report.timeline, clock, Placement(devices, clock.microbatches))
    working = clock.stage_costs(clock.stages(devices), devices).working_bytes
    assert held.sum() == pytest.approx((report.peak_bytes - working)[devices[0]])


def test_a_link_that_is_waited_for_is_named_with_what_it_carries() -> None:
    # A megabyte takes two seconds.
    clock = a_clock(bandwidth=0.5 * MIB)
    report = clock.step(HALVES, timeline=True)
    found = {
        (bottleneck.source, bottleneck.target): bottleneck for bottleneck in link_bottlenecks(report, clock, HALVES)
    }
    there, back = found["d0", "d1"], found["d1", "d0"]
    assert there.values == (("block", 4 * MIB),)
    assert back.values == (("gradient of block", 4 * MIB),)
    assert there.step_bytes == back.step_bytes == 4 * MIB
    assert there.waited_s >= 4.0
    text = str(replace(there, waited_s=3.0, step_time_s=12.0, clock="emulated"))
    assert text == (
        "link d0->d1 is a bottleneck: d1 waits for it 3000.0 of 12000.0 ms (25%, emulated); of 4.0 MiB a step most is "
        "block (4.0 MiB)"
    )


def test_a_fast_link_is_no_bottleneck_however_long_a_device_waits_for_others_to_compute() -> None:
    clock = a_clock()
    report = clock.step(HALVES, timeline=True)
    assert (report.waiting_s > 0.25 * report.step_time_s).all()
    assert link_bottlenecks(report, clock, HALVES) == ()


def test_a_measured_timeline_counts_before_the_simulated_one() -> None:
    clock = a_clock()
    timeline = clock.step(HALVES, timeline=True).timeline
    # Everything on d1 happened five seconds late, and so did what waited for it.
    late = tuple(
        span._replace(start_s=span.start_s + 5, end_s=span.end_s + 5) if span.start_s >= 1.9 else span
        for span in timeline
        if "->" not in span.lane and span.name != "F1 embed"
    )
    late += tuple(span for span in timeline if span.name == "F1 embed")
    report = a_report([0.0, 0.0], step_time_s=max(span.end_s for span in late), timeline=late)
    (found,) = watch(report, clock, HALVES)
    assert isinstance(found, LinkBottleneck)
    assert (found.source, found.target, found.clock) == ("d0", "d1", "emulated")
    assert found.waited_s == pytest.approx(5.0, abs=0.01)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_the_values_that_a_link_carries_add_up_to_its_messages(problems, data) -> None:
    problem = data.draw(problems)
    clock, placement = problem.clock, problem.placement
    timeline = clock.step(placement, timeline=True).timeline
    sent: dict[tuple[int, int], float] = {}
    for message in step_transfers(timeline, clock, placement):
        pair = message.source, message.target
        sent[pair] = sent.get(pair, 0.0) + message.num_bytes
    for pair, num_bytes in sent.items():
        carried = carried_values(clock, placement, *pair)
        assert sum(size for _, size in carried) == pytest.approx(num_bytes)
        assert [size for _, size in carried] == sorted((size for _, size in carried), reverse=True)


def test_warnings_are_frozen() -> None:
    pressure = MemoryPressure("d0", 1.0, 1.0, ())
    with pytest.raises(AttributeError):
        pressure.device = "d1"  # type: ignore[misc]
