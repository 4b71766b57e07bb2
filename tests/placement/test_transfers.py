import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.placement.clock import SimulatedClock, Span
from segue.placement.costs import Profile, make_costs
from segue.placement.errors import SegueError
from segue.placement.graph import make_graph
from segue.placement.list_schedule import BACKWARD, FORWARD
from segue.placement.placement import Placement
from segue.placement.topology import Device, Topology, uniform_links
from segue.placement.transfers import hidden_share, step_transfers


def chain(sizes=(4,), latency_s=0.0) -> SimulatedClock:
    """a -> b: one second forward and two backward each, a message of one second between them."""
    graph = make_graph("chain", [(0, 1)], batch_size=4, names=["a", "b"], output_bytes=[8.0, 4.0])
    topology = Topology("two", tuple(Device(f"d{i}", "emulated", 1e9) for i in range(2)), ())
    topology = Topology("two", topology.devices, uniform_links(["d0", "d1"], latency_s, 8.0))
    profile = Profile(np.ones(2), np.full(2, 2.0), np.zeros(2), "measured")
    return SimulatedClock(graph, topology, make_costs(graph, topology, profile), sizes)


APART = Placement(np.array([0, 1]), 1)


def test_a_message_sets_out_when_it_is_made_and_is_waited_for_until_it_arrives() -> None:
    clock = chain()
    timeline = [
        Span("d0", "F0 a", 0.0, 1.0),
        Span("d1", "F0 b", 2.0, 3.0),
        Span("d1", "B0 b", 3.0, 5.0),
        Span("d0", "B0 a", 6.5, 8.5),
        Span("d0", "update", 8.5, 8.6),
    ]
    there, back = step_transfers(timeline, clock, APART)
    assert there == (0, 1, FORWARD, 0, 0, 8.0, 1.0, 2.0, 0.0, 1.0)
    # The receiver began half a second after the message should have been there: it waited for that, too.
    assert back == (1, 0, BACKWARD, 1, 0, 8.0, 5.0, 6.0, 0.0, 1.5)
    assert hidden_share([there, back]) == 0.0


def test_what_arrives_while_the_receiver_computes_is_hidden_and_nobody_waits_for_it() -> None:
    clock = chain(sizes=(4, 2))
    timeline = [
        Span("d0", "F0 a", 0.0, 1.0),
        Span("d0", "F1 a", 1.0, 1.5),
        Span("d1", "F0 b", 2.0, 3.0),
        Span("d1", "B0 b", 3.0, 5.0),
        Span("d1", "F1 b", 5.0, 5.5),
        Span("d1", "B1 b", 5.5, 6.5),
        Span("d0", "B0 a", 6.0, 8.0),
        Span("d0", "B1 a", 8.0, 9.0),
    ]
    found = {(m.direction, m.micro): m for m in step_transfers(timeline, clock, Placement(np.array([0, 1]), 2))}
    # Half a batch is half a second on the link, and waits until the link is free.
    late = found[FORWARD, 1]
    assert (late.num_bytes, late.start_s, late.end_s, late.hidden_s, late.waited_s) == (4.0, 2.0, 2.5, 0.5, 0.0)
    back = found[BACKWARD, 1]
    assert (back.start_s, back.end_s, back.hidden_s, back.waited_s) == (6.5, 7.0, 0.5, 0.0)
    assert found[BACKWARD, 0].waited_s == 1.0
    assert hidden_share(list(found.values())) == pytest.approx((0.5 + 0.5) / (1.0 + 0.5 + 1.0 + 0.5))


def test_without_transfers_all_of_them_are_hidden() -> None:
    assert hidden_share([]) == 1.0


def test_a_report_with_a_timeline_says_what_share_of_its_transfers_is_hidden() -> None:
    clock, placement = chain(sizes=(4, 2)), Placement(np.array([0, 1]), 2)
    report = clock.step(placement, timeline=True)
    assert report.hidden_share == hidden_share(step_transfers(report.timeline, clock, placement))
    assert 0 < report.hidden_share < 1
    assert clock.step(placement).hidden_share is None


def test_a_timeline_of_another_placement_is_refused() -> None:
    clock = chain()
    timeline = clock.step(Placement(np.array([0, 0]), 1), timeline=True).timeline
    with pytest.raises(SegueError, match="device d1: no forward of microbatch 0 of op b"):
        step_transfers(timeline, clock, APART)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_the_messages_of_a_simulated_step_are_those_that_the_simulator_sent(problems, data, seed) -> None:
    problem = data.draw(problems)
    # Seconds that never coincide: the links' turns are then the same.
    rng = np.random.default_rng(seed)
    count = problem.graph.num_ops
    profile = Profile(rng.uniform(0.5, 2, count), rng.uniform(0.5, 2, count), np.zeros(count), "measured")
    costs = make_costs(problem.graph, problem.topology, profile)
    clock = SimulatedClock(problem.graph, problem.topology, costs, problem.clock.sizes)
    placement = Placement(problem.devices, clock.microbatches)
    report = clock.step(placement, timeline=True)
    messages = step_transfers(report.timeline, clock, placement)
    names = [device.name for device in problem.topology.devices]
    windows = sorted((f"{names[m.source]}->{names[m.target]}", m.start_s, m.end_s) for m in messages)
    expected = sorted((s.lane, s.start_s, s.end_s) for s in report.timeline if "->" in s.lane)
    assert [row[0] for row in windows] == [row[0] for row in expected]
    np.testing.assert_allclose([row[1:] for row in windows], [row[1:] for row in expected], atol=1e-9)
    sent = np.zeros(len(names))
    for message in messages:
        sent[message.source] += message.duration_s
        assert -1e-9 <= message.hidden_s <= message.duration_s + 1e-9
        assert message.waited_s >= 0
    np.testing.assert_allclose(sent, report.transfer_s, atol=1e-9)
    waited = np.zeros(len(names))
    for message in messages:
        waited[message.target] += message.waited_s
    assert (waited <= report.waiting_s + 1e-9).all()
