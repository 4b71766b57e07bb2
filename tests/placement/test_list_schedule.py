import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.placement.clock import SimulatedClock
from segue.placement.costs import Profile, make_costs, roofline
from segue.placement.graph import make_graph
from segue.placement.list_schedule import BACKWARD, FORWARD
from segue.placement.topology import Device, Topology, uniform_links

EXACT = 1e-12


def listed(start, others):
    return [others[start[i] : start[i + 1]].tolist() for i in range(len(start) - 1)]


def traced(problem):
    stages, trace = problem.clock.trace(problem.devices)
    return SimpleNamespace(
        stages=stages,
        trace=trace,
        costs=problem.clock.stage_costs(stages, problem.devices),
        readers={
            FORWARD: listed(stages.succ_start, stages.succ),
            BACKWARD: listed(stages.grad_start, stages.grad),
        },
    )


def messages(run):
    """(direction, sender, receiving device, microbatch) -> (begin, end)."""
    found = {}
    stages, trace = run.stages, run.trace
    for direction, offset in ((FORWARD, 0), (BACKWARD, len(stages.succ))):
        j = offset
        for sender, readers in enumerate(run.readers[direction]):
            for reader in readers:
                for micro in range(trace.start.shape[1]):
                    if trace.message_start[j, micro] >= 0:
                        key = direction, sender, int(stages.device[reader]), micro
                        assert key not in found
                        found[key] = trace.message_start[j, micro], trace.message_end[j, micro]
                j += 1
    return found


def instructions(run, device):
    """(stage, microbatch, direction) of a device in the order in which they start."""
    order = run.trace.order
    mine = [tuple(map(int, i)) for i in np.argwhere(order >= 0) if run.stages.device[i[0]] == device]
    return sorted(mine, key=lambda i: order[i])


def run_ahead_limit(run, run_ahead, micro):
    device, hops = run.stages.device, [0] * len(run.stages.device)
    for stage in reversed(range(len(hops))):
        for other in run.readers[FORWARD][stage]:
            hops[stage] = max(hops[stage], hops[other] + int(device[other] != device[stage]))
    return [min(h + 1 + run_ahead, micro) for h in hops]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_everything_runs_once_and_waits_for_what_it_reads(problems, data):
    problem = data.draw(problems)
    run = traced(problem)
    stages, trace = run.stages, run.trace
    arrived = messages(run)
    for stage, micro in itertools.product(range(len(stages.device)), range(problem.micro)):
        assert trace.start[stage, micro, FORWARD] >= 0
        assert (trace.start[stage, micro, BACKWARD] >= 0) == stages.has_backward[stage]
        if stages.has_backward[stage]:
            assert trace.start[stage, micro, BACKWARD] >= trace.end[stage, micro, FORWARD]
        for direction in (FORWARD, BACKWARD):
            for reader in run.readers[direction][stage]:
                ready = trace.end[stage, micro, direction]
                if stages.device[reader] != stages.device[stage]:
                    begin, end = arrived[direction, stage, int(stages.device[reader]), micro]
                    assert begin >= ready
                    ready = end
                assert trace.start[reader, micro, direction] >= ready


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_nothing_overlaps_on_a_device_or_a_link_and_microbatches_keep_their_order(problems, data):
    problem = data.draw(problems)
    run = traced(problem)
    stages, trace = run.stages, run.trace
    for device in range(problem.topology.num_devices):
        mine = instructions(run, device)
        for before, after in itertools.pairwise(mine):
            assert trace.start[after] >= trace.end[before]
        for stage in np.flatnonzero(stages.device == device):
            for direction in (FORWARD, BACKWARD)[: 1 + stages.has_backward[stage]]:
                assert [m for s, m, d in mine if (s, d) == (stage, direction)] == list(range(problem.micro))
        busy = sum(trace.end[i] - trace.start[i] for i in mine) + run.costs.update[device]
        assert trace.busy[device] == pytest.approx(busy, abs=1e-9)
        assert trace.step_time >= busy - 1e-9
        last = max((trace.end[i] for i in mine), default=0.0)
        assert trace.step_time >= last + run.costs.update[device]
    lanes = {}
    for (_, sender, device, _), bar in messages(run).items():
        lanes.setdefault((int(stages.device[sender]), device), []).append(bar)
    for bars in lanes.values():
        for before, after in itertools.pairwise(sorted(bars)):
            assert after[0] >= before[1]
    for device in range(problem.topology.num_devices):
        taken = sum(end - begin for (a, _), bars in lanes.items() if a == device for begin, end in bars)
        assert trace.transfer[device] == pytest.approx(taken, abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_step_takes_at_least_the_longest_path_through_its_ops(problems, data):
    problem = data.draw(problems)
    graph, costs, where = problem.graph, problem.clock.costs, problem.devices
    sources = {op: [int(a) for a, b in graph.edges if b == op] for op in range(graph.num_ops)}
    targets = {op: [int(b) for a, b in graph.edges if a == op] for op in range(graph.num_ops)}
    forward, backward = np.zeros(graph.num_ops), np.zeros(graph.num_ops)
    for op in range(graph.num_ops):
        forward[op] = costs.on_devices(costs.forward_s)[op, where[op]] + max(
            (forward[a] for a in sources[op]), default=0.0
        )
    for op in reversed(range(graph.num_ops)):
        if graph.requires_grad[op]:
            behind = [backward[b] for b in targets[op] if graph.requires_grad[b]]
            backward[op] = costs.on_devices(costs.backward_s)[op, where[op]] + max([forward[op], *behind])
    longest = max(forward.max(), backward.max())
    assert problem.clock.step_time(where) >= longest - 1e-9


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_stage_runs_further_ahead_than_its_bound(problems, data):
    problem = data.draw(problems)
    run = traced(problem)
    limits = run_ahead_limit(run, problem.clock.run_ahead, problem.micro)
    for device in range(problem.topology.num_devices):
        ahead = dict.fromkeys(range(len(limits)), 0)
        for stage, _, direction in instructions(run, device):
            if run.stages.has_backward[stage]:
                ahead[stage] += 1 if direction == FORWARD else -1
                assert 0 <= ahead[stage] <= limits[stage]
        assert not any(ahead.values())


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_peak_memory_is_what_a_replay_of_the_trace_holds(problems, data):
    problem = data.draw(problems)
    run = traced(problem)
    for device in range(problem.topology.num_devices):
        live = replayed_live_bytes(run, device)
        least, most = (replayed_unread_bytes(run, device, sent_first) for sent_first in (False, True))
        assert live + least - 1e-9 <= run.trace.peak_live_bytes[device] <= live + most + 1e-9


def parts(run, direction, stage):
    """Readers of a stage, and the bytes that wait for each of them."""
    stages = run.stages
    start, sizes = ((stages.succ_start, stages.out_bytes), (stages.grad_start, stages.grad_parts))[direction]
    return zip(run.readers[direction][stage], sizes[start[stage] : start[stage + 1]], strict=True)


def replayed_live_bytes(run, device):
    """Most that the passes of a device hold, with the gradients that wait there for another stage of it."""
    held = peak = 0.0
    for stage, micro, direction in instructions(run, device):
        fraction = run.costs.fraction[micro]
        size = run.costs.live_bytes[stage] * fraction
        held += size if direction == FORWARD else 0.0
        peak = max(peak, held)
        held -= size if direction == BACKWARD or not run.stages.has_backward[stage] else 0.0
        for reader, part in parts(run, direction, stage):
            held += part * fraction if run.stages.device[reader] == device else 0.0
        if direction == BACKWARD:
            for sender in np.flatnonzero(run.stages.device == device):
                waited = [part for reader, part in parts(run, BACKWARD, sender) if reader == stage]
                held -= sum(waited) * fraction
    assert held == pytest.approx(0.0, abs=1e-9)
    return peak


def replayed_unread_bytes(run, device, sent_first):
    """Most that lies unread on a device; `sent_first` where something is sent at the moment at which something is read."""
    changes = []
    for stage, micro, direction in np.argwhere(run.trace.order >= 0).tolist():
        if run.stages.device[stage] == device:
            continue
        for reader, part in parts(run, direction, stage):
            if run.stages.device[reader] == device:
                size = part * run.costs.fraction[micro]
                changes.append((run.trace.end[stage, micro, direction], 0 if sent_first else 1, size))
                changes.append((run.trace.start[reader, micro, direction], 1 if sent_first else 0, -size))
    held = np.cumsum([size for *_, size in sorted(changes)])
    assert not changes or held[-1] == pytest.approx(0.0, abs=1e-9)
    return max(held.max(initial=0.0), max((size for *_, size in changes), default=0.0))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_renaming_equal_devices_keeps_the_step_time(problems, data):
    problem = data.draw(problems)
    count = problem.topology.num_devices
    names = [device.name for device in problem.topology.devices]
    equal = Topology("equal", tuple(Device(n, "emulated", 1e9) for n in names), uniform_links(names, 0.5, 2.0))
    costs = make_costs(problem.graph, equal, problem.profile)
    clock = SimulatedClock(problem.graph, equal, costs, problem.clock.sizes, problem.clock.run_ahead)
    order = np.array(data.draw(st.permutations(range(count))), np.int64)
    assert clock.step_time(order[problem.devices]) == pytest.approx(clock.step_time(problem.devices), abs=EXACT)


def chain_problem(seconds, cuts, speed, latency, bandwidth, num_micro=1):
    count = len(seconds)
    graph = make_graph("chain", [(i, i + 1) for i in range(count - 1)], count, output_bytes=2.0, batch_size=4)
    names = [f"d{i}" for i in range(len(speed))]
    devices = tuple(Device(n, "emulated", 1e9, s) for n, s in zip(names, speed, strict=True))
    topology = Topology("chain", devices, uniform_links(names, latency, bandwidth))
    profile = Profile(np.array(seconds), 2 * np.array(seconds), np.zeros(count), "drawn")
    clock = SimulatedClock(graph, topology, make_costs(graph, topology, profile), [4] * num_micro)
    where = np.searchsorted(np.sort(cuts), np.arange(count), side="right").astype(np.int64)
    return clock, where


@settings(max_examples=60, deadline=None)
@given(
    seconds=st.lists(st.floats(0.0, 9.0), min_size=1, max_size=8),
    cuts=st.lists(st.integers(0, 8), min_size=2, max_size=2),
    speed=st.lists(st.floats(0.1, 4.0), min_size=3, max_size=3),
    faster=st.lists(st.floats(1.0, 4.0), min_size=3, max_size=3),
    link=st.tuples(st.floats(0.0, 2.0), st.floats(0.1, 9.0)),
)
def test_on_a_chain_a_faster_device_or_link_never_hurts(seconds, cuts, speed, faster, link):
    clock, where = chain_problem(seconds, cuts, speed, *link)
    slow = clock.step_time(where)
    quick, _ = chain_problem(seconds, cuts, [a * b for a, b in zip(speed, faster, strict=True)], *link)
    assert quick.step_time(where) <= slow + 1e-9
    wide, _ = chain_problem(seconds, cuts, speed, link[0] / 2, link[1] * 3)
    assert wide.step_time(where) <= slow + 1e-9
    crossings = np.count_nonzero(np.diff(where))
    by_hand = sum(3 * s / speed[d] for s, d in zip(seconds, where, strict=True))
    assert slow == pytest.approx(by_hand + 2 * crossings * (link[0] + 2.0 / link[1]))


@pytest.mark.parametrize("micro", range(1, 9))
def test_a_balanced_pipeline_on_free_links_takes_one_fill_more_than_its_work(micro):
    clock, where = chain_problem([1.0, 1.0], [1], [1.0, 1.0], 0.0, 1e18, micro)
    assert clock.step_time(where) == pytest.approx(3.0 * (micro + 1))


def test_one_device_takes_the_sum_of_everything():
    graph = make_graph("two", [(0, 1)], batch_size=8, forward_flops=2e10, backward_flops=4e10, parameter_bytes=5e9)
    topology = Topology("one", (Device("d0", "emulated", 1e12, 1.0, 0.5),))
    clock = SimulatedClock(graph, topology, make_costs(graph, topology, roofline(graph)), [8, 8, 4])
    micro = 2.5 * (2 + 4) + 0.5 * 2 * 2.5
    update = 2 * 4.0
    assert clock.step_time(np.zeros(2, np.int64)) == pytest.approx(micro + update)


def test_a_device_without_ops_does_nothing():
    clock, where = chain_problem([1.0, 2.0], [0, 0], [1.0, 1.0, 2.0], 0.1, 1.0)
    assert where.tolist() == [2, 2]
    _, trace = clock.trace(where)
    assert trace.busy.tolist() == [0.0, 0.0, 4.5]
    assert trace.transfer.tolist() == [0.0, 0.0, 0.0]
    assert trace.peak_live_bytes.tolist() == [0.0, 0.0, 0.0]


def test_a_backward_goes_before_a_forward():
    clock, where = chain_problem([1.0], [1, 1], [1.0] * 3, 0.0, 1.0, 3)
    _, trace = clock.trace(where)
    order = [tuple(map(int, i[1:])) for i in sorted(np.argwhere(trace.order >= 0), key=lambda i: trace.order[tuple(i)])]
    assert order == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_messages_that_share_a_channel_take_turns(problems, data):
    problem = data.draw(problems)
    topology = problem.topology
    names = ["bus", "card"]
    shared = [tuple(data.draw(st.lists(st.sampled_from(names), unique=True))) for _ in topology.links]
    links = tuple(replace(link, channels=c) for link, c in zip(topology.links, shared, strict=True))
    old = problem.clock
    clock = SimulatedClock(old.graph, replace(topology, links=links), old.costs, old.sizes, old.run_ahead)
    stages, trace = clock.trace(problem.devices)
    run = SimpleNamespace(
        stages=stages,
        trace=trace,
        readers={FORWARD: listed(stages.succ_start, stages.succ), BACKWARD: listed(stages.grad_start, stages.grad)},
    )
    channels = {(topology.index[k.source], topology.index[k.target]): k.channels for k in links}
    lanes = {}
    for (_, sender, device, _), bar in messages(run).items():
        pair = int(stages.device[sender]), device
        for channel in channels[pair] or (pair,):
            lanes.setdefault(channel, []).append(bar)
    for bars in lanes.values():
        for before, after in itertools.pairwise(sorted(bars)):
            assert after[0] >= before[1]
    assert clock.evaluate(problem.devices)[0] == trace.step_time


def test_two_links_over_one_bus_take_twice_as_long():
    graph = make_graph("fan", [(0, 1), (0, 2)], 3, output_bytes=np.array([10.0, 0, 0]), batch_size=1)
    names = ["a", "b", "c"]
    devices = tuple(Device(n, "emulated", 1e9) for n in names)
    profile = Profile(np.zeros(3), np.zeros(3), np.zeros(3), "drawn")
    times = []
    for channels in ((), ("bus",)):
        links = tuple(replace(link, channels=channels) for link in uniform_links(names, 0.0, 10.0))
        topology = Topology("fan", devices, links)
        graph_forward = replace(graph, requires_grad=np.zeros(3, bool))
        clock = SimulatedClock(graph_forward, topology, make_costs(graph, topology, profile))
        times.append(clock.step_time(np.array([0, 1, 2])))
    assert times == [pytest.approx(1.0), pytest.approx(2.0)]


def test_with_clipping_an_update_waits_until_its_device_has_heard_of_the_last_backward_of_all():
    graph = make_graph("pair", [(0, 1)], 2, output_bytes=0.0, batch_size=1)
    devices = tuple(Device(name, "emulated", 1e9) for name in ("d0", "d1"))
    topology = Topology("pair", devices, uniform_links(["d0", "d1"], 0.5, 1.0))
    costs = make_costs(graph, topology, Profile(np.ones(2), 2 * np.ones(2), np.array([1.0, 10.0]), "drawn"))
    apart = np.array([0, 1])
    # d0: forward to 1. d1: forward from 1.5, backward to 4.5. d0: backward from 5 to 7. What d0 found reaches d1 at 7.5.
    for clipping, starts, step_time in ((False, [7.0, 4.5], 14.5), (True, [7.0, 7.5], 17.5)):
        clock = SimulatedClock(graph, topology, costs, clipping=clipping)
        assert clock.trace(apart)[1].update_start.tolist() == starts
        assert clock.step_time(apart) == step_time
