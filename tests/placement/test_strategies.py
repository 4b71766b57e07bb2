from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.placement.clock import SimulatedClock
from segue.placement.costs import Profile, make_costs
from segue.placement.errors import SegueError
from segue.placement.graph import make_graph
from segue.placement.presets import preset
from segue.placement.strategies import BUCKET_BYTES, batch_shares, data_parallel, naive
from segue.placement.topology import Device, Link, Topology

LATENCY, BANDWIDTH = 0.5, 100.0


def topology(speeds, memory=1e12, overhead=0.0, channels=(), bandwidth=BANDWIDTH):
    names = [f"d{i}" for i in range(len(speeds))]
    links = tuple(Link(a, b, LATENCY, bandwidth, channels) for a in names for b in names if a != b)
    return Topology(
        "test", tuple(Device(n, "emulated", memory, s, overhead) for n, s in zip(names, speeds, strict=True)), links
    )


def clock_of(devices, sizes, forward=(0.25, 0.75), backward=(0.5, 1.5), update=(0.5, 0.5), **graph_costs):
    count = len(forward)
    costs = {"parameter_bytes": 50.0, "output_bytes": 10.0, "saved_bytes": 20.0, "batch_size": sizes[0]} | graph_costs
    graph = make_graph("chain", [(i, i + 1) for i in range(count - 1)], count, **costs)
    profile = Profile(*(np.array(column, float) for column in (forward, backward, update)), "test")
    return SimulatedClock(graph, devices, make_costs(graph, devices, profile), sizes)


def test_naive_adds_up_ops_and_transfers_of_the_whole_batch():
    clock = clock_of(topology((1.0, 0.5)), (1, 1), forward=(1, 2), backward=(2, 4))
    report = naive(clock, np.array([0, 1]))
    assert report.busy_s.tolist() == pytest.approx([2 * 3 + 0.5, 2 * (2 * 6 + 0.5)])
    assert report.transfer_s.tolist() == pytest.approx([0.5 + 0.2, 0.5 + 0.2])
    assert report.step_time_s == pytest.approx(6.5 + 25 + 1.4)
    assert report.peak_bytes.tolist() == pytest.approx([4 * 50 + 2 * 20, 4 * 50 + 2 * 20 + 2 * 10])
    assert report.source == "simulated"


def test_naive_carries_a_value_once_to_each_device_and_only_gradients_that_exist():
    devices = topology((1.0, 1.0, 1.0))
    graph = make_graph(
        "fan",
        [(0, 1), (0, 2), (0, 3), (4, 5)],
        6,
        output_bytes=100.0,
        requires_grad=np.array([True, True, True, False, False, True]),
    )
    clock = SimulatedClock(graph, devices, make_costs(graph, devices))
    report = naive(clock, np.array([0, 1, 1, 2, 0, 1]))
    assert report.transfer_s.tolist() == pytest.approx([3 * 1.5, 1.5, 0])


def test_naive_counts_an_instruction_a_run_and_pass():
    clock = clock_of(topology((1.0, 1.0), overhead=0.125), (1,), (0,) * 4, (0,) * 4, (0,) * 4, output_bytes=0.0)
    assert naive(clock, np.array([0, 0, 1, 0])).busy_s.tolist() == pytest.approx([4 * 0.125, 2 * 0.125])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_naive_on_one_device_is_the_sum_of_its_ops(data, problems):
    problem = data.draw(problems)
    costs, ops = problem.clock.costs, problem.graph.num_ops
    batch = sum(problem.clock.sizes) / problem.clock.sizes[0]
    report = naive(problem.clock, np.zeros(ops, np.int64))
    seconds = costs.on_devices(batch * (costs.forward_s + costs.backward_s) + costs.update_s)[:, 0].sum()
    instructions = 1 + problem.graph.requires_grad.any()
    assert report.step_time_s == pytest.approx(seconds + instructions * costs.overhead_s[0])
    assert not report.transfer_s.any()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_naive_is_never_faster_than_any_device_computes(data, problems):
    problem = data.draw(problems)
    report = naive(problem.clock, problem.devices)
    assert report.step_time_s == pytest.approx(report.busy_s.sum() + report.transfer_s.sum())
    assert (report.waiting_s >= -1e-9).all()


@pytest.mark.parametrize("micro", [1, 3])
def test_naive_on_a_chain_is_the_clock_of_one_microbatch(micro):
    devices = topology((1.0, 0.5, 2.0), overhead=0.25)
    split = clock_of(devices, (2,) * micro, (1, 2, 3, 4), (2, 1, 3, 1), (0, 0, 0, 0))
    whole = clock_of(
        devices, (2 * micro,), micro * np.array([1, 2, 3, 4]), micro * np.array([2, 1, 3, 1]), (0, 0, 0, 0),
        output_bytes=10.0 * micro, saved_bytes=20.0 * micro,
    )  # fmt: skip
    where = np.array([0, 0, 1, 1])
    report = naive(split, where)
    _, trace = whole.trace(where)
    assert report.busy_s == pytest.approx(trace.busy)
    assert report.step_time_s == pytest.approx(trace.step_time)
    unread = 10.0 * micro * np.array([1, 1, 0])  # naive execution reads what it is sent at once
    assert report.peak_bytes == pytest.approx(whole._static_bytes(where) + trace.peak_live_bytes - unread)


def test_equal_shares_wait_for_the_slow_replica():
    clock = clock_of(topology((1.0, 0.5)), (6,), forward=(1.5, 4.5), backward=(3, 9))
    assert batch_shares(clock, "equal").tolist() == [3, 3]
    report = data_parallel(clock, "equal")
    # A sample takes 1 s forward and 2 s backward, twice that on d1; its update takes 2 s; 100 bytes take 2 (0.5 + 50 / 100).
    assert report.step_time_s == pytest.approx(18 + 2 + 2)
    assert report.busy_s.tolist() == pytest.approx([9 + 1, 18 + 2])
    assert report.transfer_s.tolist() == pytest.approx([2, 2])
    assert report.peak_bytes.tolist() == pytest.approx([400 + 20, 400 + 20])


def test_shares_by_speed_end_together():
    clock = clock_of(topology((1.0, 0.5)), (6,), forward=(1.5, 4.5), backward=(3, 9))
    assert batch_shares(clock, "speed").tolist() == [4, 2]
    assert data_parallel(clock, "speed").step_time_s == pytest.approx(12 + 2 + 2)


def test_links_that_share_a_channel_take_turns():
    clock = clock_of(topology((1.0, 0.5), channels=("bus",)), (6,), forward=(1.5, 4.5), backward=(3, 9))
    assert data_parallel(clock, "equal").step_time_s == pytest.approx(18 + 4 + 2)


def test_all_but_the_last_bucket_overlaps_the_last_backward():
    devices = topology((1.0, 1.0), bandwidth=BUCKET_BYTES)
    costs = {"parameter_bytes": [2 * BUCKET_BYTES, BUCKET_BYTES / 2], "saved_bytes": 0.0}
    # Buckets take 2 s, 2 s and 1.5 s; the backward pass of 2 samples takes 2 s for 1 s a sample.
    clock = clock_of(devices, (4,), (1, 1), (2, 2), (0, 0), **costs)
    assert data_parallel(clock, "equal").step_time_s == pytest.approx(max(1 + 5.5, 3 + 1.5))
    slow = clock_of(devices, (4,), (10, 10), (20, 20), (0, 0), **costs)
    assert data_parallel(slow, "equal").step_time_s == pytest.approx(30 + 1.5)


def test_a_share_too_large_for_memory_is_taken_in_microbatches():
    sizes = (2, 2, 2, 2, 2)
    costs = {"saved_bytes": 20.0, "update": (0, 0)}
    roomy = clock_of(topology((1.0, 1.0), memory=400 + 100, overhead=0.25), sizes, **costs)
    tight = clock_of(topology((1.0, 1.0), memory=400 + 60, overhead=0.25), sizes, **costs)
    whole, parts = data_parallel(roomy, "equal"), data_parallel(tight, "equal")
    assert (whole.peak_bytes.tolist(), parts.peak_bytes.tolist()) == ([500, 500], [440, 440])
    assert whole.feasible
    assert parts.feasible
    # Three microbatches of a share of five samples instead of one: two instructions more in each pass.
    assert parts.busy_s - whole.busy_s == pytest.approx([1.0, 1.0])


def test_what_does_not_fit_says_so():
    report = data_parallel(clock_of(topology((1.0, 1.0), memory=300), (2,)), "equal")
    assert not report.feasible
    assert report.overflow_bytes.tolist() == pytest.approx([400 + 20 - 300] * 2)


def test_a_device_too_slow_or_too_far_is_left_out():
    assert batch_shares(clock_of(topology((1.0, 1e-3)), (8,)), "speed").tolist() == [8, 0]
    far = clock_of(topology((1.0, 1.0), bandwidth=1e-3), (8,))
    assert sorted(batch_shares(far, "speed").tolist()) == [0, 8]
    assert batch_shares(clock_of(topology((1.0, 1.0)), (8,), (40, 40), (40, 40)), "speed").tolist() == [4, 4]


def test_the_ring_takes_the_fast_links():
    names = [f"d{i}" for i in range(4)]
    fast = {("d0", "d2"), ("d2", "d1"), ("d1", "d3"), ("d3", "d0")}
    links = tuple(Link(a, b, 0.0, 1000.0 if (a, b) in fast else 1.0) for a in names for b in names if a != b)
    devices = Topology("ring", tuple(Device(n, "emulated", 1e12) for n in names), links)
    clock = clock_of(devices, (4,), (0, 0), (0, 0), (0, 0))
    assert data_parallel(clock, "equal").step_time_s == pytest.approx(2 * 3 / 4 * 100 / 1000)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_shares_sum_to_the_batch(data, problems):
    problem = data.draw(problems)
    for kind in ("equal", "speed"):
        shares = batch_shares(problem.clock, kind)
        assert shares.sum() == sum(problem.clock.sizes)
        assert (shares >= 0).all()
        report = data_parallel(problem.clock, kind)
        assert (report.busy_s[shares == 0] == 0).all()
        assert (report.waiting_s >= -1e-9).all()
    assert data_parallel(problem.clock, "speed").step_time_s >= 0


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_one_device_computes_what_it_computes_alone(data, problems):
    problem = data.draw(problems)
    alone = problem.topology.devices[:1]
    devices = Topology("one", alone)
    costs = make_costs(problem.graph, devices, problem.profile)
    clock = SimulatedClock(problem.graph, devices, costs, problem.clock.sizes)
    single = naive(clock, np.zeros(problem.graph.num_ops, np.int64))
    for kind in ("equal", "speed"):
        report = data_parallel(clock, kind)
        assert report.step_time_s == pytest.approx(single.step_time_s)
        assert not report.transfer_s.any()


@settings(max_examples=60, deadline=None)
@given(
    speeds=st.lists(st.sampled_from([0.1, 0.5, 1.0, 3.0]), min_size=1, max_size=4),
    factor=st.sampled_from([1.1, 2.0, 10.0]),
    batch=st.integers(1, 9),
    bandwidth=st.sampled_from([10.0, 1e9]),
    data=st.data(),
)
def test_a_faster_device_never_hurts_shares_by_speed(speeds, factor, batch, bandwidth, data):
    which = data.draw(st.integers(0, len(speeds) - 1))
    faster = [speed * factor if i == which else speed for i, speed in enumerate(speeds)]
    before, after = (
        data_parallel(clock_of(topology(s, bandwidth=bandwidth), (batch,)), "speed").step_time_s
        for s in (speeds, faster)
    )
    assert after <= before * (1 + 1e-12)


def test_shares_by_speed_are_never_worse_than_equal_ones():
    for speeds in ((1.0, 1.0, 0.3), (2.0, 1.0, 1.0, 0.5, 0.1)):
        clock = clock_of(topology(speeds), (10,))
        assert data_parallel(clock, "speed").step_time_s <= data_parallel(clock, "equal").step_time_s


def test_many_devices_are_shared_out():
    clock = clock_of(topology(np.linspace(1, 2, 64), bandwidth=1e9), (128,), (1e4, 1e4), (1e4, 1e4))
    shares = batch_shares(clock, "speed")
    assert shares.sum() == 128
    assert (shares > 0).all()


def test_a_device_that_cannot_run_an_op_gets_no_share_by_speed():
    clock = clock_of(topology((1.0, 1.0)), (4,))
    forward, classes = np.array([[1.0, 1.0], [1.0, np.inf]]), np.array([0, 1])
    costs = clock.costs
    infinite = replace(costs, forward_s=forward, backward_s=forward, update_s=np.zeros((2, 2)), device_class=classes)
    clock = SimulatedClock(clock.graph, clock.topology, infinite, (4,))
    assert batch_shares(clock, "speed").tolist() == [4, 0]
    assert np.isfinite(data_parallel(clock, "speed").step_time_s)
    assert data_parallel(clock, "equal").step_time_s == np.inf
    assert naive(clock, np.array([0, 1])).step_time_s == np.inf


def test_unknown_shares_are_refused():
    with pytest.raises(SegueError, match="shares 'fair': no such shares; known: equal, speed"):
        data_parallel(clock_of(topology((1.0,)), (1,)), "fair")


def test_presets_are_priced():
    clock = clock_of(preset("emulated-4"), (8, 8))
    assert data_parallel(clock, "speed").step_time_s <= data_parallel(clock, "equal").step_time_s
