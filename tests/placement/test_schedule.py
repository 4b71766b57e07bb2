from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.placement.clock import SimulatedClock
from segue.placement.costs import make_costs
from segue.placement.graph import make_graph
from segue.placement.list_schedule import BACKWARD, FORWARD
from segue.placement.placement import Placement
from segue.placement.presets import preset
from segue.placement.schedule import make_schedule

COMPUTE = ("forward", "backward")


def message_of(instruction, device):
    """(direction, sending stage, microbatch, receiving device) of a send or receive in a device's program."""
    receiver = instruction.peer if instruction.kind == "send" else device
    return instruction.direction, instruction.stage, instruction.micro, receiver


def message_seconds(schedule, costs):
    """Seconds of every message, from the stages' bytes: (direction, stage, receiving device) -> full microbatch."""
    stages = schedule.stages
    seconds = {}
    for direction, start, others, size in (
        (FORWARD, stages.succ_start, stages.succ, stages.out_bytes),
        (BACKWARD, stages.grad_start, stages.grad, stages.grad_bytes),
    ):
        for stage in range(len(stages.device)):
            for j in range(start[stage], start[stage + 1]):
                key = direction, stage, int(stages.device[others[j]])
                seconds[key] = seconds.get(key, 0.0) + size[j]
    return lambda direction, stage, device, fraction: (
        costs.latency[stages.device[stage], device]
        + seconds[direction, stage, device] * fraction * costs.seconds_per_byte[stages.device[stage], device]
    )


def naive_times(schedule, costs):
    """Price the fixed programs and nothing else: repeat over all instructions until no time changes."""
    travel = message_seconds(schedule, costs)
    begin, end, arrival = {}, {}, {}
    while True:
        before = dict(end), dict(arrival)
        link_free = {}
        for device, program in enumerate(schedule.programs):
            now = 0.0
            for step in program:
                if step.kind == "receive":
                    now = max(now, arrival.get(message_of(step, device), 0.0))
                elif step.kind == "send":
                    key = device, step.peer
                    start = max(now, link_free.get(key, 0.0))
                    link_free[key] = start + travel(step.direction, step.stage, step.peer, costs.fraction[step.micro])
                    arrival[message_of(step, device)] = link_free[key]
                elif step.kind in COMPUTE:
                    key = step.stage, step.micro, step.direction
                    seconds = costs.backward if step.kind == "backward" else costs.forward
                    begin[key] = now
                    now = end[key] = now + seconds[step.stage] * costs.fraction[step.micro]
                else:
                    end[device] = now + costs.update[device]
        if before == (end, arrival):
            return begin, end


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_one_schedule_two_clocks(problems, data):
    problem = data.draw(problems)
    schedule = make_schedule(problem.clock, problem.placement)
    stages, trace = problem.clock.trace(problem.devices)
    costs = problem.clock.stage_costs(stages, problem.devices)
    begin, end = naive_times(schedule, costs)
    assert len(begin) == np.count_nonzero(trace.order >= 0)
    for key, time in begin.items():
        assert trace.start[key] == pytest.approx(time, abs=1e-12, rel=0)
        assert trace.end[key] == pytest.approx(end[key], abs=1e-12, rel=0)
    count = problem.topology.num_devices
    passed = [end.get(device, 0.0) - costs.update[device] for device in range(count)]
    if costs.clipping:
        heard = [
            max(passed[other] + costs.latency[other, device] * (other != device) for other in range(count))
            for device in range(count)
        ]
        passed = [heard[device] if costs.update[device] > 0 else passed[device] for device in range(count)]
    assert trace.step_time == pytest.approx(max(np.add(passed, costs.update)), abs=1e-12, rel=0)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_every_message_is_sent_once_and_received_once_before_it_is_needed(problems, data):
    problem = data.draw(problems)
    schedule = make_schedule(problem.clock, problem.placement)
    stages = schedule.stages
    sent, received = Counter(), Counter()
    for device, program in enumerate(schedule.programs):
        done, here = set(), set()
        for step in program:
            if step.kind == "send":
                sent[message_of(step, device)] += 1
                assert (step.stage, step.micro, step.direction) in done
                assert step.peer != device
            elif step.kind == "receive":
                received[message_of(step, device)] += 1
                here.add((step.stage, step.micro, step.direction))
                assert step.peer == stages.device[step.stage]
            elif step.kind in COMPUTE:
                start, others = (
                    (stages.succ_start, stages.succ) if step.direction == FORWARD else (stages.grad_start, stages.grad)
                )
                needed = [s for s in range(len(stages.device)) if step.stage in others[start[s] : start[s + 1]]]
                assert all((s, step.micro, step.direction) in done | here for s in needed)
                done.add((step.stage, step.micro, step.direction))
        kinds = [step.kind for step in program]
        assert kinds.count("update") == bool(kinds)
        assert not kinds or kinds[-1] == "update"
    assert sent == received
    assert set(sent.values()) <= {1}


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_incoming_messages_are_listed_in_the_senders_order(problems, data):
    problem = data.draw(problems)
    schedule = make_schedule(problem.clock, problem.placement)
    for device in range(problem.topology.num_devices):
        incoming = schedule.incoming(device)
        for source, program in enumerate(schedule.programs):
            expected = [step for step in program if step.kind == "send" and step.peer == device]
            assert [arrival.send for arrival in incoming.get(source, [])] == expected
        received = Counter(message_of(s, device) for s in schedule.programs[device] if s.kind == "receive")
        assert received == Counter(message_of(a.send, source) for source, found in incoming.items() for a in found)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_message_acknowledges_what_its_sender_has_taken_in_before(problems, data):
    problem = data.draw(problems)
    schedule = make_schedule(problem.clock, problem.placement)
    for device in range(problem.topology.num_devices):
        for source, arrivals in schedule.incoming(device).items():
            program = schedule.programs[source]
            for arrival in arrivals:
                before = program[: program.index(arrival.send)]
                taken_in = [step for step in before if step.kind == "receive" and step.peer == device]
                assert arrival.acknowledges == len(taken_in)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_programs_run_to_their_end_with_blocking_receives(problems, data):
    problem = data.draw(problems)
    schedule = make_schedule(problem.clock, problem.placement)
    position = [0] * len(schedule.programs)
    delivered = set()
    turns = data.draw(st.permutations(range(len(position))))
    moved = True
    while moved:
        moved = False
        for device in turns:
            program = schedule.programs[device]
            while position[device] < len(program):
                step = program[position[device]]
                if step.kind == "receive" and message_of(step, device) not in delivered:
                    break
                if step.kind == "send":
                    delivered.add(message_of(step, device))
                position[device] += 1
                moved = True
    assert position == [len(program) for program in schedule.programs]


def test_the_program_of_a_small_pipeline_reads_as_one_would_write_it():
    graph = make_graph("chain", [(0, 1)], batch_size=4, forward_flops=1e9, backward_flops=2e9, output_bytes=8)
    topology = preset("emulated-2")
    clock = SimulatedClock.for_batch(graph, topology, make_costs(graph, topology), 4, 1)
    schedule = make_schedule(clock, Placement(np.array([0, 1]), 1))
    first, second = ([(s.kind, s.direction, s.stage, s.peer) for s in program] for program in schedule.programs)
    assert first == [
        ("forward", FORWARD, 0, -1),
        ("send", FORWARD, 0, 1),
        ("receive", BACKWARD, 1, 1),
        ("backward", BACKWARD, 0, -1),
        ("update", FORWARD, -1, -1),
    ]
    assert second == [
        ("receive", FORWARD, 0, 0),
        ("forward", FORWARD, 1, -1),
        ("backward", BACKWARD, 1, -1),
        ("send", BACKWARD, 1, 0),
        ("update", FORWARD, -1, -1),
    ]


def test_a_device_without_ops_has_an_empty_program():
    graph = make_graph("one", [], 1, forward_flops=1.0)
    topology = preset("emulated-4")
    clock = SimulatedClock(graph, topology, make_costs(graph, topology))
    schedule = make_schedule(clock, Placement(np.array([2])))
    assert [len(program) for program in schedule.programs] == [0, 0, 3, 0]
    assert schedule.incoming(2) == {}
