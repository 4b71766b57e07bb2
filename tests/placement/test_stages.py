import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.placement.graph import make_graph
from segue.placement.stages import adjacency, build_stages, waiting_bytes


def stages_of(graph, devices, num_devices=None):
    devices = np.asarray(devices, np.int64)
    count = num_devices or int(devices.max()) + 1
    return build_stages(devices, adjacency(graph), graph.requires_grad, graph.output_bytes, count)


def members(stages, stage):
    return stages.ops[stages.op_start[stage] : stages.op_start[stage + 1]].tolist()


def pairs(start, others):
    return [(stage, int(other)) for stage in range(len(start) - 1) for other in others[start[stage] : start[stage + 1]]]


def test_a_chain_on_two_devices_is_one_stage_a_device():
    graph = make_graph("chain", [(0, 1), (1, 2), (2, 3)], output_bytes=[1, 2, 4, 8])
    stages = stages_of(graph, [0, 0, 1, 1])
    assert stages.stage_of.tolist() == [0, 0, 1, 1]
    assert stages.device.tolist() == [0, 1]
    assert (stages.succ.tolist(), stages.out_bytes.tolist()) == ([1], [2.0])
    assert (stages.grad.tolist(), stages.grad_bytes.tolist()) == ([0], [2.0])
    assert (stages.num_pred.tolist(), stages.num_grad_pred.tolist()) == ([0, 1], [1, 0])


def test_a_single_op_is_one_stage():
    stages = stages_of(make_graph("one", [], 1), [0])
    assert stages.device.tolist() == [0]
    assert stages.has_backward.tolist() == [True]
    assert len(stages.succ) == len(stages.grad) == 0


def test_a_value_is_sent_before_the_ops_behind_it_run():
    graph = make_graph("skip", [(0, 1), (0, 2), (1, 2)])
    assert stages_of(graph, [0, 0, 1]).stage_of.tolist() == [0, 1, 2]


def test_a_value_read_twice_on_a_device_travels_once():
    graph = make_graph("fan", [(0, 1), (0, 2), (0, 3)], output_bytes=[10, 1, 1, 1])
    stages = stages_of(graph, [0, 1, 1, 2])
    by_device = np.bincount(stages.device[stages.succ], stages.out_bytes, 3)
    assert by_device.tolist() == [0, 10, 10]


def test_what_needs_no_gradient_joins_the_stage_that_first_reads_it():
    graph = make_graph("mask", [(0, 1), (1, 3), (2, 3)], requires_grad=[True, True, False, True])
    assert stages_of(graph, [0, 1, 0, 0]).stage_of.tolist() == [0, 1, 2, 2]


def test_no_gradient_flows_to_frozen_ops():
    graph = make_graph("frozen", [(0, 1), (1, 2)], requires_grad=[False, True, True], output_bytes=1)
    stages = stages_of(graph, [0, 1, 0])
    assert stages.has_backward.tolist() == [False, True, True]
    assert pairs(stages.grad_start, stages.grad) == [(2, 1)]


@pytest.mark.parametrize("devices", list(itertools.product(range(2), repeat=4)))
def test_every_map_of_a_diamond_has_stages_without_cycles(devices):
    graph = make_graph("diamond", [(0, 1), (0, 2), (1, 3), (2, 3)])
    stages = stages_of(graph, devices, 2)
    assert all(a < b for a, b in pairs(stages.succ_start, stages.succ))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_stages_part_the_ops_and_run_in_numbering_order(problems, data):
    problem = data.draw(problems)
    graph, devices, stages = problem.graph, problem.devices, problem.clock.stages(problem.devices)
    listed = [op for stage in range(len(stages.device)) for op in members(stages, stage)]
    assert sorted(listed) == list(range(graph.num_ops))
    for stage in range(len(stages.device)):
        mine = members(stages, stage)
        assert mine == sorted(mine)
        assert set(devices[mine]) == {stages.device[stage]}
        assert set(stages.stage_of[mine]) == {stage}
        assert stages.has_backward[stage] == graph.requires_grad[mine].any()
    crossing = {
        (int(stages.stage_of[a]), int(stages.stage_of[b]))
        for a, b in graph.edges
        if stages.stage_of[a] != stages.stage_of[b]
    }
    assert all(a < b and stages.level[a] < stages.level[b] for a, b in crossing)
    succ = pairs(stages.succ_start, stages.succ)
    assert len(succ) == len(set(succ))
    assert set(succ) == crossing
    assert stages.num_pred.tolist() == [sum(b == stage for _, b in crossing) for stage in range(len(stages.device))]
    rg = graph.requires_grad
    back = {
        (int(stages.stage_of[b]), int(stages.stage_of[a]))
        for a, b in graph.edges
        if rg[a] and rg[b] and stages.stage_of[a] != stages.stage_of[b]
    }
    assert sorted(pairs(stages.grad_start, stages.grad)) == sorted(back)
    assert stages.num_grad_pred.tolist() == [sum(a == stage for _, a in back) for stage in range(len(stages.device))]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_within_a_stage_nothing_runs_behind_a_send_or_waits_for_a_receive(problems, data):
    problem = data.draw(problems)
    graph, devices, stages = problem.graph, problem.devices, problem.clock.stages(problem.devices)
    after = {op: set() for op in range(graph.num_ops)}
    for a, b in graph.edges[::-1]:
        after[int(a)] |= {int(b)} | after[int(b)]
    for a, b in graph.edges:
        if devices[a] == devices[b]:
            continue
        sender, reader = stages.stage_of[a], stages.stage_of[b]
        assert not any(stages.stage_of[later] == sender for later in after[int(a)])
        assert not any(stages.stage_of[op] == reader and int(b) in after[op] and int(a) in after[op] for op in after)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_messages_carry_every_value_once_to_each_device(problems, data):
    problem = data.draw(problems)
    graph, devices, stages = problem.graph, problem.devices, problem.clock.stages(problem.devices)
    expected = {}
    for op, device in {(int(a), int(devices[b])) for a, b in graph.edges if devices[a] != devices[b]}:
        key = int(stages.stage_of[op]), device
        expected[key] = expected.get(key, 0.0) + graph.output_bytes[op]
    sent, first = {}, {}
    for (stage, other), amount in zip(pairs(stages.succ_start, stages.succ), stages.out_bytes, strict=True):
        key = stage, int(stages.device[other])
        if key in first or key[1] == stages.device[stage]:
            assert amount == 0
        first.setdefault(key, other)
        sent[key] = sent.get(key, 0.0) + amount
    assert {key: value for key, value in sent.items() if key[1] != stages.device[key[0]]} == expected


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_gradients_of_the_last_readers_travel_summed_and_all_others_one_by_one(problems, data):
    problem = data.draw(problems)
    graph, devices, stages = problem.graph, problem.devices, problem.clock.stages(problem.devices)
    of, rg = stages.stage_of, graph.requires_grad
    expected = {}
    for op in range(graph.num_ops):
        readers = [int(b) for a, b in graph.edges[::-1] if a == op and rg[op] and rg[b]]
        last = of[readers[0]] if readers else -1
        lead = next((i for i, b in enumerate(readers) if of[b] != last), len(readers))
        for reader in readers[:1] + readers[lead:]:
            if devices[reader] != devices[op]:
                key = int(of[reader]), int(devices[op])
                expected[key] = expected.get(key, 0.0) + graph.output_bytes[op]
    sent = {}
    for (stage, other), amount in zip(pairs(stages.grad_start, stages.grad), stages.grad_bytes, strict=True):
        key = stage, int(stages.device[other])
        if key[1] != stages.device[stage]:
            sent[key] = sent.get(key, 0.0) + amount
    assert {key: value for key, value in sent.items() if value} == {k: v for k, v in expected.items() if v}


def test_gradients_wait_on_their_device_for_the_stage_that_made_the_value():
    graph = make_graph("fork", [(0, 1), (0, 2), (1, 3), (2, 3)], 4, output_bytes=[30.0, 1.0, 2.0, 4.0])
    stages = stages_of(graph, [0, 1, 0, 0])
    assert stages.stage_of.tolist() == [0, 1, 2, 3]
    # Stage 2 hands on 30 and has used up the 2 that stage 3 gave it; what stage 1 sends comes from another device.
    assert waiting_bytes(stages).tolist() == [-30.0, 0.0, 28.0, 2.0]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_all_gradients_that_wait_are_used(problems, data):
    problem = data.draw(problems)
    stages = problem.clock.stages(problem.devices)
    left = np.bincount(stages.device, waiting_bytes(stages), problem.topology.num_devices)
    np.testing.assert_allclose(left, 0.0, atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_renaming_devices_renames_the_stages_devices_and_nothing_else(problems, data):
    problem = data.draw(problems)
    count = problem.topology.num_devices
    order = np.array(data.draw(st.permutations(range(count))), np.int64)
    stages = problem.clock.stages(problem.devices)
    other = problem.clock.stages(order[problem.devices])
    np.testing.assert_array_equal(other.stage_of, stages.stage_of)
    np.testing.assert_array_equal(other.device, order[stages.device])

    def messages(some, relabel):
        found = {}
        for (a, b), amount in zip(pairs(some.succ_start, some.succ), some.out_bytes, strict=True):
            key = a, int(relabel[some.device[b]])
            found[key] = found.get(key, 0.0) + amount
        return found

    assert messages(stages, order) == messages(other, np.arange(count))
