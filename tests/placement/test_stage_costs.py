import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.placement.clock import SimulatedClock
from segue.placement.costs import Profile, make_costs
from segue.placement.graph import make_graph
from segue.placement.topology import Device, Topology, uniform_links


def clock(message_s: float, per_byte: float, ops: int = 4) -> SimulatedClock:
    graph = make_graph("chain", [(op - 1, op) for op in range(1, ops)], ops, output_bytes=10.0, batch_size=1)
    devices = tuple(Device(n, "cpu", 1e9, message_s=message_s, message_s_per_byte=per_byte) for n in ("a", "b"))
    topology = Topology("two", devices, uniform_links(["a", "b"], 0.5, 100.0))
    profile = Profile(np.ones(ops), 2 * np.ones(ops), np.zeros(ops), "drawn")
    return SimulatedClock(graph, topology, make_costs(graph, topology, profile))


def test_a_message_keeps_both_its_ends_busy() -> None:
    where = np.array([0, 0, 1, 1])
    free, dear = clock(0.0, 0.0), clock(0.25, 0.125)
    # One message there and its gradient back, each paid for by both ends: 0.25 + 10 * 0.125 seconds four times.
    assert free.step_time(where) == pytest.approx(12 + 2 * 0.6)
    assert dear.step_time(where) == pytest.approx(12 + 2 * 0.6 + 4 * 1.5)
    assert dear.trace(where)[1].busy.tolist() == pytest.approx([6 + 3, 6 + 3])


def test_without_a_message_nothing_is_paid() -> None:
    assert clock(0.25, 0.125).step_time(np.zeros(4, np.int64)) == pytest.approx(12)


@settings(max_examples=40, deadline=None)
@given(where=st.lists(st.integers(0, 1), min_size=6, max_size=6))
def test_busy_time_grows_by_two_ends_for_every_message(where) -> None:
    devices = np.array(where)
    crossings = 2 * np.count_nonzero(np.diff(devices))
    free, dear = clock(0.0, 0.0, 6).trace(devices)[1], clock(0.25, 0.0, 6).trace(devices)[1]
    assert dear.busy.sum() - free.busy.sum() == pytest.approx(0.25 * 2 * crossings)
