import numpy as np
import pytest
from hypothesis import given, settings

from segue.placement.costs import make_costs
from segue.placement.errors import SegueError
from segue.placement.graph import make_graph
from segue.placement.max_load import MaxLoadClock
from segue.placement.objective_clock import make_clock
from segue.placement.placement import Placement
from segue.placement.topology import Device, Topology, uniform_links


def naive_max_load(clock: MaxLoadClock, where: np.ndarray) -> np.ndarray:
    """Loads by the definition, device by device and value by value."""
    graph, costs, topology = clock.graph, clock.costs, clock.topology
    samples = sum(clock.sizes) / clock.sizes[0]
    seconds = costs.on_devices(samples * (costs.forward_s + costs.backward_s) + costs.update_s)
    load = np.zeros(topology.num_devices)
    for op in range(graph.num_ops):
        load[where[op]] += seconds[op, where[op]]
        readers = {where[b] for a, b in graph.edges if a == op} - {where[op]}
        for other in readers:
            ways = [(where[op], other)] + ([(other, where[op])] if graph.requires_grad[op] else [])
            for a, b in ways:
                both = clock.microbatches * topology.latency_s[a, b]
                both += samples * graph.output_bytes[op] * topology.seconds_per_byte[a, b]
                load[[a, b]] += both
    return load


def test_max_load_follows_its_definition(problems) -> None:
    @settings(deadline=None)
    @given(problems)
    def check(problem) -> None:
        old = problem.clock
        clock = MaxLoadClock(old.graph, old.topology, old.costs, old.sizes, old.run_ahead)
        loads = naive_max_load(clock, problem.devices)
        value, overflow = clock.evaluate(problem.devices)
        assert value == pytest.approx(loads.max())
        assert overflow == 0.0
        report = clock.step(problem.placement)
        np.testing.assert_allclose(report.busy_s + report.transfer_s, loads)
        many, _ = clock.evaluate_many(np.stack([problem.devices, np.zeros_like(problem.devices)]))
        assert many.tolist() == [value, clock.evaluate(np.zeros_like(problem.devices))[0]]

    check()


def chain(memory_bytes: float = 1e9):
    graph = make_graph(
        "chain",
        [(0, 1), (1, 2)],
        3,
        batch_size=2,
        requires_grad=np.ones(3, bool),
        forward_flops=np.full(3, 2e10),
        backward_flops=np.full(3, 4e10),
        output_bytes=np.full(3, 1e6),
        saved_bytes=np.full(3, 50.0),
        parameter_bytes=np.full(3, 100.0),
    )
    devices = tuple(Device(name, "emulated", memory_bytes) for name in ("a", "b"))
    topology = Topology("two", devices, uniform_links(["a", "b"], 0.25, 1e6))
    return graph, topology, make_costs(graph, topology)


def test_latency_is_the_forward_pass_of_one_microbatch() -> None:
    clock = make_clock(*chain(), [2, 2, 1], "latency")
    assert clock.step_time(np.zeros(3, np.int64)) == pytest.approx(3.0, rel=1e-3)
    assert clock.step_time(np.array([0, 1, 1])) == pytest.approx(4.25, rel=1e-3)
    assert clock.step(Placement(np.zeros(3, np.int64), 1)).peak_bytes.tolist() == [300.0, 0.0]


def test_max_load_counts_what_a_full_pipeline_keeps_alive() -> None:
    graph, topology, costs = chain(1e3)
    clock = make_clock(graph, topology, costs, [2] * 8, "max-load")
    overflow = clock.evaluate(np.zeros(3, np.int64))[1]
    assert overflow == 3 * (4 * 100 + 3 * 50) - 1e3


def test_an_unknown_objective_is_named() -> None:
    with pytest.raises(SegueError, match="objective 'speed': no such objective; known: step-time, max-load, latency"):
        make_clock(*chain(), [2], "speed")
