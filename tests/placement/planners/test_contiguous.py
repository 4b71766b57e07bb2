import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.placement.clock import SimulatedClock
from segue.placement.costs import Profile, make_costs
from segue.placement.errors import SegueError
from segue.placement.graph import make_graph
from segue.placement.planners import contiguous as module
from segue.placement.planners import plan
from segue.placement.planners.contiguous import contiguous, make_line
from segue.placement.planners.plan import Evaluator
from segue.placement.planners.split import split
from segue.placement.topology import Device, Link, Topology


def draw_chain(seed: int, count: int, num_devices: int, tight: bool) -> SimulatedClock:
    """A chain of ops on unequal devices and links, with whole bytes and memory that may be tight."""
    rng = np.random.default_rng(seed)
    graph = make_graph(
        "chain",
        [(i, i + 1) for i in range(count - 1)],
        count,
        output_bytes=rng.integers(0, 6, count).astype(float),
        saved_bytes=rng.integers(0, 4, count).astype(float),
        parameter_bytes=rng.integers(0, 3, count).astype(float),
    )
    names = [f"d{i}" for i in range(num_devices)]
    room = 4 * graph.parameter_bytes.sum() + 4 * (graph.saved_bytes.sum() + 5)
    memory = [1 + room * (rng.uniform(0.3, 0.9) if tight else 10.0) for _ in names]
    topology = Topology(
        "random",
        tuple(Device(n, "emulated", m, rng.choice([0.5, 1, 3]), 0.05) for n, m in zip(names, memory, strict=True)),
        tuple(Link(a, b, rng.choice([0.0, 0.2]), rng.choice([4.0, 9.0, 90.0])) for a in names for b in names if a != b),
    )
    profile = Profile(rng.random(count), 2 * rng.random(count), rng.random(count), "drawn")
    return SimulatedClock(graph, topology, make_costs(graph, topology, profile), (2,) * int(rng.integers(1, 5)))


def run_seconds(clock: SimulatedClock, order, positions) -> list[float]:
    """Seconds a microbatch of every run by definition, op by op; infinite if it does not fit."""
    costs, graph, topology = clock.costs, clock.graph, clock.topology
    seconds = costs.on_devices(costs.forward_s + costs.backward_s + costs.update_s / clock.microbatches)
    runs = []
    for position in sorted(set(positions)):
        device, ops = order[position], [op for op, own in enumerate(positions) if own == position]
        live = min(len(order) - position + clock.run_ahead, clock.microbatches)
        own = sum(seconds[op, device] for op in ops) + 2 * topology.overhead_s[device]
        held = sum(costs.state_bytes[op] + live * graph.saved_bytes[op] for op in ops)
        if ops[0] > 0:
            value, before = graph.output_bytes[ops[0] - 1], order[positions[ops[0] - 1]]
            for a, b in ((before, device), (device, before)):
                own += topology.latency_s[a, b] + value * topology.seconds_per_byte[a, b]
            held += live * value
        runs.append(own if held <= topology.memory_bytes[device] else np.inf)
    return runs


def slowest_run(clock: SimulatedClock, order, positions) -> float:
    """The objective by its definition."""
    return max(run_seconds(clock, order, positions))


class Recorder(Evaluator):
    """Keeps what it was asked for, in that order."""

    def __init__(self, clock: SimulatedClock, evaluations: int):
        super().__init__(clock, evaluations)
        self.priced: list[list[int]] = []

    def __call__(self, devices):
        self.priced.append(devices.tolist())
        return super().__call__(devices)


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 8), num_devices=st.integers(1, 4), tight=st.booleans())
def test_the_dynamic_program_is_as_good_as_the_best_of_all_contiguous_splits(seed, count, num_devices, tight):
    clock = draw_chain(seed, count, num_devices, tight)
    order = np.random.default_rng(seed).permutation(num_devices)
    bottleneck, positions = split(make_line(clock, order))
    every = itertools.combinations_with_replacement(range(num_devices), count)
    best = min(slowest_run(clock, order, row) for row in every)
    assert bottleneck == pytest.approx(best)
    if np.isfinite(best):
        assert (np.diff(positions) >= 0).all()
        assert slowest_run(clock, order, positions.tolist()) == pytest.approx(best)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 7), num_devices=st.integers(1, 3))
def test_the_planner_prices_the_best_split_of_every_order_of_the_devices(seed, count, num_devices):
    clock = draw_chain(seed, count, num_devices, tight=False)
    evaluator = Recorder(clock, 100)
    contiguous(evaluator, np.random.default_rng(0))
    for order in itertools.permutations(range(num_devices)):
        every = itertools.combinations_with_replacement(range(num_devices), count)
        best = min(slowest_run(clock, order, row) for row in every)
        runs = [[order.index(device) for device in devices] for devices in evaluator.priced]
        own = [slowest_run(clock, order, row) for row in runs if sorted(row) == row]
        assert min(own) == pytest.approx(best), f"no best split of order {order} was priced"
    assert evaluator.best[1] == min(clock.step_time(np.array(devices)) for devices in evaluator.priced)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 7), num_devices=st.integers(2, 4), most=st.integers(1, 5))
def test_the_given_order_is_priced_first_and_then_those_that_promise_most(seed, count, num_devices, most):
    clock = draw_chain(seed, count, num_devices, tight=False)
    evaluator = Recorder(clock, most)
    contiguous(evaluator, np.random.default_rng(0))
    priced, promised = evaluator.priced, []
    for order in itertools.permutations(range(num_devices)):
        positions = split(make_line(clock, np.array(order)))[1]
        runs = run_seconds(clock, order, positions.tolist())
        promised.append((sum(runs) + (clock.microbatches - 1) * max(runs), np.array(order)[positions].tolist()))
    assert len(priced) == min(most, len(promised))
    assert priced[0] == promised[0][1]
    likely = sorted(promised[1:])[: len(priced) - 1]
    worst = likely[-1][0] * (1 + 1e-9) if likely else 0.0
    assert all(devices in [other for seconds, other in promised[1:] if seconds <= worst] for devices in priced[1:])


def test_runs_that_leave_no_room_are_avoided():
    graph = make_graph("chain", [(0, 1), (1, 2), (2, 3)], parameter_bytes=1.0, forward_flops=[1e9, 1e9, 1e9, 9e9])
    names = ("a", "b")
    links = tuple(Link(a, b, 0.0, 1e9) for a in names for b in names if a != b)
    topology = Topology("two", (Device("a", "emulated", 8.0), Device("b", "emulated", 100.0)), links)
    clock = SimulatedClock(graph, topology, make_costs(graph, topology))
    line = make_line(clock, np.arange(2))
    assert split(line)[1].tolist() == [0, 0, 1, 1]
    evaluator = Evaluator(clock, 50)
    contiguous(evaluator, np.random.default_rng(0))
    assert evaluator.best[0] == 0


def test_more_devices_and_ops_than_memory_allows_are_refused_at_once(monkeypatch):
    clock = draw_chain(0, 10, 3, tight=False)
    monkeypatch.setattr(module, "MOST_BYTES", 8 * 9 * 11)
    assert plan("contiguous", clock).feasible
    monkeypatch.setattr(module, "MOST_BYTES", 8 * 9 * 11 - 1)
    with pytest.raises(SegueError, match=r"'contiguous': .* 10 ops between 3 devices .* GiB"):
        plan("contiguous", clock)
