"""Beliefs against steps that another simulator plays, whose costs are wrong."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segue.agent.beliefs import Beliefs
from segue.placement.clock import SimulatedClock, StepReport
from segue.placement.costs import Profile, make_costs
from segue.placement.first_messages import FirstMessages
from segue.placement.graph import make_graph
from segue.placement.placement import Placement
from segue.placement.presets import preset
from segue.placement.topology import Topology

OPS = 12
GRAPH = make_graph("chain", [(i, i + 1) for i in range(OPS - 1)], output_bytes=1e6, parameter_bytes=1e4)
PROFILE = Profile(np.full(OPS, 2e-3), np.full(OPS, 4e-3), np.zeros(OPS), "measured")
TOPOLOGY = preset("emulated-2")
SIZES = (4, 4)
MESSAGE_BYTES = 5e7
SPLIT, OTHER = Placement(np.repeat([0, 1], OPS // 2), 2), Placement(np.repeat([1, 0, 1], [2, 6, 4]), 2)
Floats = NDArray[np.float64]


def truth(ops: Floats | float = 1.0, devices: Floats | float = 1.0, links: float = 1.0) -> SimulatedClock:
    """The simulator with costs multiplied by factors."""
    slower = tuple(
        replace(link, latency_s=link.latency_s * links, bandwidth_bytes_per_s=link.bandwidth_bytes_per_s / links)
        for link in TOPOLOGY.links
    )
    topology = replace(TOPOLOGY.with_speed(TOPOLOGY.speed / (np.ones(2) * devices)), links=slower)
    costs = make_costs(GRAPH, topology, PROFILE)
    of_op = (np.ones(OPS) * ops)[:, None]
    costs = replace(costs, forward_s=costs.forward_s * of_op, backward_s=costs.backward_s * of_op)
    return SimulatedClock(GRAPH, topology, costs, SIZES)


def beliefs(**options) -> Beliefs:
    return Beliefs(GRAPH, TOPOLOGY, PROFILE, SIZES, **{"window": 1, "grain": 0.0, **options})


def see(believed: Beliefs, clock: SimulatedClock, *placements: Placement, timeline: bool = False) -> None:
    for placement in placements:
        believed.observe(placement, clock.step(placement, timeline))
        believed.correct()


def error(believed: Beliefs, clock: SimulatedClock, placement: Placement) -> float:
    return abs(np.log(believed.predict(placement).step_time_s / clock.step(placement).step_time_s))


def busy_error(believed: Beliefs, clock: SimulatedClock, placement: Placement) -> float:
    """How far predicted busy seconds are off, relative, at most."""
    return float(np.abs(believed.predict(placement).busy_s / clock.step(placement).busy_s - 1).max())


factors = st.lists(st.floats(0.5, 1.5), min_size=OPS, max_size=OPS)


@settings(deadline=None, max_examples=25)
@given(factors, st.floats(0.5, 1.5), st.booleans())
def test_the_busy_seconds_of_a_step_that_was_seen_are_predicted_no_worse_than_before(
    ops: list[float], links: float, timeline: bool
) -> None:
    clock = truth(np.array(ops), np.array([0.6, 1.4]), links)
    believed = beliefs()
    for placement in (SPLIT, OTHER):
        before = busy_error(believed, clock, placement)
        see(believed, clock, placement, timeline=timeline)
        assert busy_error(believed, clock, placement) <= max(before, 0.02)


@settings(deadline=None, max_examples=15)
@given(factors)
def test_the_order_of_steps_does_not_matter(ops: list[float]) -> None:
    clock = truth(np.array(ops), np.array([0.6, 1.4]))
    one, other = beliefs(), beliefs()
    see(one, clock, SPLIT, OTHER)
    see(other, clock, OTHER, SPLIT)
    assert one.speed == pytest.approx(other.speed, rel=1e-6)
    assert one.predict(SPLIT).step_time_s == pytest.approx(other.predict(SPLIT).step_time_s, rel=1e-6)


def test_the_pace_of_links_is_learned() -> None:
    clock = truth(links=10.0)
    believed = beliefs()
    see(believed, clock, SPLIT)
    assert believed.clock.topology.seconds_per_byte[0, 1] == pytest.approx(
        clock.topology.seconds_per_byte[0, 1], rel=0.1
    )
    assert error(believed, clock, SPLIT) < 0.02


def test_waiting_for_messages_is_not_taken_for_their_transfer() -> None:
    believed = beliefs()
    believed.observe(SPLIT, replace(truth(links=10.0).step(SPLIT), source="measured"))
    believed.correct()
    assert believed.clock.topology.seconds_per_byte == pytest.approx(TOPOLOGY.seconds_per_byte)


def on_real_devices(report: StepReport, seconds: Floats, jitter: float = 1.0) -> StepReport:
    """The step as workers on real devices would report it: transfers with waits, and the times of first messages."""
    messages = FirstMessages(np.where(np.isfinite(seconds), MESSAGE_BYTES, np.nan), seconds * jitter)
    return replace(report, transfer_s=report.transfer_s * 7, source="measured", first_messages=messages)


def message_s(topology: Topology) -> Floats:
    """Seconds of a long message over each link; nan on the diagonal."""
    seconds = topology.latency_s + MESSAGE_BYTES * topology.seconds_per_byte
    return np.where(np.eye(topology.num_devices, dtype=bool), np.nan, seconds)


def on_hosts(*hosts: str) -> Topology:
    devices = tuple(replace(d, host=host) for d, host in zip(TOPOLOGY.devices, hosts, strict=True))
    return replace(TOPOLOGY, devices=devices)


def test_the_pace_of_a_real_link_is_learned_from_how_long_its_first_message_took() -> None:
    clock, believed = truth(links=4.0), beliefs()
    believed.observe(SPLIT, on_real_devices(clock.step(SPLIT), message_s(clock.topology)))
    believed.correct()
    learned = believed.clock.topology.seconds_per_byte
    assert learned[0, 1] == pytest.approx(clock.topology.seconds_per_byte[0, 1], rel=0.2)
    assert learned[1, 0] == pytest.approx(clock.topology.seconds_per_byte[1, 0], rel=0.2)


@settings(deadline=None, max_examples=25)
@given(st.floats(-1e5, 1e5), st.floats(0.2, 5.0))
def test_between_hosts_what_their_clocks_differ_by_does_not_matter(difference_s: float, links: float) -> None:
    topology = on_hosts("a", "b")
    report, seconds = truth(links=links).step(SPLIT), message_s(truth(links=links).topology)
    skew = np.array([[0.0, difference_s], [-difference_s, 0.0]])
    here, there = (Beliefs(GRAPH, topology, PROFILE, SIZES, window=1, grain=0.0) for _ in range(2))
    for believed, shown in ((here, seconds), (there, seconds + skew)):
        believed.observe(SPLIT, on_real_devices(report, shown))
        believed.correct()
    learned = here.clock.topology.seconds_per_byte
    assert there.clock.topology.seconds_per_byte == pytest.approx(learned, rel=1e-6)
    assert learned[0, 1] == pytest.approx(links * TOPOLOGY.seconds_per_byte[0, 1], rel=0.35)


def test_a_message_between_hosts_that_went_one_way_only_says_nothing() -> None:
    topology = on_hosts("a", "b")
    believed = Beliefs(GRAPH, topology, PROFILE, SIZES, window=1, grain=0.0)
    seconds = message_s(truth(links=10.0).topology)
    seconds[1, 0] = np.nan
    believed.observe(SPLIT, on_real_devices(truth().step(SPLIT), seconds))
    believed.correct()
    assert believed.drift(0.25) == {}
    assert believed.clock.topology.seconds_per_byte == pytest.approx(TOPOLOGY.seconds_per_byte)


def test_a_real_link_that_drops_to_a_tenth_is_named_and_learned_anew() -> None:
    topology = on_hosts("a", "b")
    believed = Beliefs(GRAPH, topology, PROFILE, SIZES)
    report = truth().step(SPLIT)
    for jitter in (1.0, 1.1, 0.95, 1.05, 0.9, 1.0):
        believed.observe(SPLIT, on_real_devices(report, message_s(TOPOLOGY), jitter))
    believed.correct()
    assert believed.drift(0.25) == {}
    slow = truth(links=10.0)
    for jitter in (0.9, 1.1, 1.0):
        believed.observe(SPLIT, on_real_devices(report, message_s(slow.topology), jitter))
    (name, ratio), *others = believed.drift(0.25).items()
    assert name == "a message from dev0 to dev1 and back"
    assert not others
    assert ratio == pytest.approx(10.0, rel=0.2)
    believed.correct()
    assert believed.clock.topology.seconds_per_byte[0, 1] == pytest.approx(
        slow.topology.seconds_per_byte[0, 1], rel=0.3
    )
    assert believed.drift(0.25) == {}


def test_short_messages_that_come_late_are_no_drift() -> None:
    believed = Beliefs(GRAPH, TOPOLOGY, PROFILE, SIZES)
    report = truth().step(SPLIT)
    late = np.where(np.eye(2, dtype=bool), np.nan, TOPOLOGY.latency_s + 3e-4)
    for _ in range(3):
        believed.observe(SPLIT, replace(report, source="measured", first_messages=FirstMessages(0.0 * late, late)))
    assert believed.drift(0.25) == {}


def test_stages_in_timelines_tell_ops_apart() -> None:
    clock = truth(np.where(np.arange(OPS) < 2, 1.5, 0.7))
    shuttle = Placement(np.repeat([0, 1, 0], [2, 4, 6]), 2)
    summed, timed = beliefs(), beliefs()
    see(summed, clock, shuttle)
    see(timed, clock, shuttle, timeline=True)
    head = Placement(np.repeat([0, 1], [2, 10]), 2)
    busy = clock.step(head).busy_s[0]
    assert timed.predict(head).busy_s[0] == pytest.approx(busy, rel=0.03)
    assert summed.predict(head).busy_s[0] < 0.8 * busy


def test_a_device_that_slows_down_is_learned_anew_and_its_ops_are_not() -> None:
    ops = np.where(np.arange(OPS) % 3 == 0, 1.4, 0.8)
    believed = beliefs()
    see(believed, truth(ops), SPLIT, OTHER)
    slow = truth(ops, np.array([3.0, 1.0]))
    before = believed.speed
    see(believed, slow, OTHER)
    assert believed.speed[0] == pytest.approx(before[0] / 3.0, rel=0.05)
    assert believed.speed[1] == pytest.approx(before[1], rel=0.02)
    assert error(believed, slow, SPLIT) < 0.05


def test_a_link_that_slows_down_is_learned_anew() -> None:
    believed = beliefs()
    see(believed, truth(), SPLIT, OTHER)
    slow = truth(links=10.0)
    see(believed, slow, SPLIT)
    assert error(believed, slow, SPLIT) < 0.03


def test_noise_below_the_grain_changes_nothing() -> None:
    believed = beliefs(grain=0.05)
    report = truth().step(SPLIT)
    for noise in (1.02, 0.98, 1.01):
        believed.observe(SPLIT, replace(report, busy_s=report.busy_s * noise, transfer_s=report.transfer_s / noise))
        assert not believed.correct()
    assert np.array_equal(believed.speed, TOPOLOGY.speed)


def test_what_is_drawn_scatters_less_after_steps_were_seen() -> None:
    def scatter(believed: Beliefs) -> float:
        rng = np.random.default_rng(0)
        return float(np.std([np.log(believed.sample(rng).step_time(SPLIT.devices)) for _ in range(30)]))

    believed = beliefs()
    before = scatter(believed)
    see(believed, truth(), SPLIT)
    assert scatter(believed) < 0.2 * before


def test_beliefs_without_a_device_keep_what_was_learned_of_the_others() -> None:
    clock = truth(np.linspace(0.6, 1.4, OPS), np.array([2.0, 1.0]))
    believed = beliefs()
    see(believed, clock, SPLIT, OTHER)
    rest = believed.without(1)
    assert rest.speed == pytest.approx(believed.speed[:1])
    alone = Placement(np.zeros(OPS, np.int64), 2)
    assert rest.predict(alone).step_time_s == pytest.approx(believed.predict(alone).step_time_s)
    assert believed.topology.num_devices == 2


def test_the_same_steps_give_the_same_beliefs() -> None:
    clock = truth(np.linspace(0.6, 1.4, OPS))
    one, other = beliefs(), beliefs()
    see(one, clock, SPLIT, OTHER, SPLIT)
    see(other, clock, SPLIT, OTHER, SPLIT)
    assert np.array_equal(one.clock.costs.forward_s, other.clock.costs.forward_s)
