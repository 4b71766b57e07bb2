import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.placement.errors import SegueError
from segue.placement.graph import make_graph
from segue.placement.placement import Placement, check_placement, colocate
from segue.placement.presets import preset

TOPOLOGY = preset("emulated-2")


@pytest.fixture(scope="module")
def graph():
    return make_graph("g", [(0, 1), (1, 2), (2, 3)], colocation=[0, -1, 0, -1])


@pytest.fixture
def record(graph):
    return json.loads(json.dumps(Placement(np.array([1, 0, 1, 0]), 2).to_record(graph, TOPOLOGY, 0.5)))


def write(path, record):
    path.write_text(json.dumps(record))
    return path


def test_a_saved_placement_is_read_back_whole(tmp_path, graph):
    placement = Placement(np.array([1, 0, 1, 0]), 3)
    placement.save(tmp_path / "p.json", graph, TOPOLOGY, predicted_step_time_s=0.25, measured_step_time_s=0.5)
    assert Placement.load(tmp_path / "p.json", graph, TOPOLOGY) == placement
    record = json.loads((tmp_path / "p.json").read_text())
    assert (record["predicted_step_time_s"], record["measured_step_time_s"]) == (0.25, 0.5)
    assert (record["graph"], record["topology"]) == (graph.hash, TOPOLOGY.hash)


def test_devices_are_stored_by_name_so_that_their_order_may_change(graph, record):
    other = type(TOPOLOGY)("turned", TOPOLOGY.devices[::-1], TOPOLOGY.links)
    assert Placement.from_record(record, graph, other).devices.tolist() == [0, 1, 0, 1]


def test_equal_placements_are_equal_and_hash_alike():
    a, b = Placement(np.array([0, 1])), Placement(np.array([0, 1]))
    assert a == b
    assert hash(a) == hash(b)
    assert a != Placement(np.array([0, 1]), 2)
    assert a != Placement(np.array([1, 1]))
    assert a.moved(Placement(np.array([1, 1]))).tolist() == [0]


def field(name, value):
    return lambda r: r.__setitem__(name, value)


def op(name, value):
    return lambda r: r["devices"].__setitem__(name, value)


MALFORMED = {
    "wrong format": (field("format", "segue.placement/2"), "format: expected 'segue.placement/1'"),
    "missing field": (lambda r: r.pop("devices"), "devices: missing"),
    "unknown field": (field("device", 1), "device: unknown field; known: format, graph, microbatches, devices"),
    "another graph": (field("graph", "0123"), "graph: made for graph 0123, but g is "),
    "graph of no text": (field("graph", None), "graph: made for graph None, but g is "),
    "devices a list": (field("devices", [0, 1]), "devices: expected an object of op name -> device name"),
    "op without device": (lambda r: r["devices"].pop("op2"), "devices: op 'op2' has no device"),
    "op that is not there": (op("op9", "dev0"), "devices: g has no op 'op9'"),
    "unknown device": (op("op1", "gpu0"), "devices: 'gpu0' is not in the topology; known: dev0, dev1"),
    "device of none": (op("op1", None), "devices: None is not in the topology; known: dev0, dev1"),
    "device of a number": (op("op1", 0), "devices: 0 is not in the topology; known: dev0, dev1"),
    "device of a list": (op("op1", ["dev0"]), "devices: ['dev0'] is not in the topology"),
    "split colocation": (op("op0", "dev0"), "ops op0, op2 must share a device (colocation 0)"),
    "no microbatches": (field("microbatches", 0), "microbatches must be >= 1, got 0"),
    "microbatches as text": (field("microbatches", "2"), "microbatches: expected a whole number, got '2'"),
    "true microbatches": (field("microbatches", True), "microbatches: expected a whole number, got True"),
    "time as a list": (field("predicted_step_time_s", [1]), "predicted_step_time_s must be a number"),
    "negative time": (field("measured_step_time_s", -1), "measured_step_time_s must be >= 0, got -1"),
    "NaN time": (field("measured_step_time_s", float("nan")), "measured_step_time_s must be finite, got nan"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_placement_is_refused_with_the_file_the_field_and_the_reason(tmp_path, graph, record, case):
    mutate, message = MALFORMED[case]
    mutate(record)
    path = write(tmp_path / "p.json", record)
    with pytest.raises(SegueError) as error:
        Placement.load(path, graph, TOPOLOGY)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_mutated_placement_file_is_read_or_refused_in_one_line(mutations, refuses_or_reads, scratch, graph, data):
    record = Placement(np.array([1, 0, 1, 0]), 2).to_record(graph, TOPOLOGY, 0.5)
    path = write(scratch / "mutated.json", data.draw(mutations(record)))
    placement = refuses_or_reads(lambda p: Placement.load(p, graph, TOPOLOGY), path)
    if placement is not None:
        check_placement(placement, graph, TOPOLOGY)


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ([0, 1], "devices: expected one for each of 4 ops"),
        ([0, 2, 0, 0], "op op1: device 2 is outside 0..1"),
        ([0, 0, 0, -1], "op op3: device -1 is outside 0..1"),
        ([1, 0, 0, 0], "ops op0, op2 must share a device"),
    ],
)
def test_a_map_that_cannot_be_scheduled_is_refused(graph, devices, message):
    with pytest.raises(SegueError, match=message):
        check_placement(Placement(np.array(devices)), graph, TOPOLOGY)


def test_colocate_moves_every_group_to_its_first_op(graph):
    assert colocate([1, 0, 0, 0], graph).tolist() == [1, 0, 1, 0]
    free = make_graph("free", [(0, 1)])
    assert colocate([1, 0], free).tolist() == [1, 0]
