import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.placement.costs import Profile, fractions, make_costs, microbatch_sizes, roofline
from segue.placement.errors import SegueError
from segue.placement.graph import make_graph
from segue.placement.topology import Device, Topology, uniform_links

GRAPH = make_graph("g", [(0, 1)], parameter_bytes=[100, 0], buffer_bytes=[0, 8])
PROFILE = Profile(np.array([1.0, 2.0]), np.array([3.0, 0.0]), np.array([0.5, 0.0]), "measured")


def write(path, record):
    path.write_text(json.dumps(record))
    return path


def test_a_saved_profile_is_read_back_whole(tmp_path):
    PROFILE.save(tmp_path / "profile.json", GRAPH)
    again = Profile.load(tmp_path / "profile.json", GRAPH)
    for field in ("forward_s", "backward_s", "update_s"):
        np.testing.assert_array_equal(getattr(again, field), getattr(PROFILE, field))
    assert again.source == "measured"


@pytest.fixture
def record(tmp_path):
    PROFILE.save(tmp_path / "profile.json", GRAPH)
    return json.loads((tmp_path / "profile.json").read_text())


def op(name, value):
    return lambda r: r["forward_s"].__setitem__(name, value)


MALFORMED = {
    "wrong format": (lambda r: r.__setitem__("format", "1"), "format: expected 'segue.profile/1', got '1'"),
    "missing field": (lambda r: r.pop("update_s"), "update_s: missing"),
    "unknown field": (lambda r: r.__setitem__("unit", "s"), "unit: unknown field; known: format, graph, forward_s"),
    "another graph": (lambda r: r.__setitem__("graph", "0123"), "graph: taken of graph 0123, but g is "),
    "an op too few": (lambda r: r["forward_s"].pop("op1"), "forward_s: expected seconds for each op of g"),
    "an op too many": (op("op2", 1.0), "forward_s: expected seconds for each op of g"),
    "a list": (lambda r: r.__setitem__("backward_s", [1, 2]), "backward_s: expected seconds for each op of g"),
    "text": (op("op1", "long"), "forward_s[op1] must be a number"),
    "none": (op("op1", None), "forward_s[op1] must be a number"),
    "negative": (op("op1", -1), "forward_s[op1] must be >= 0, got -1"),
    "NaN": (op("op1", float("nan")), "forward_s[op1] must be finite, got nan"),
    "beyond floats": (op("op1", 10**400), "forward_s[op1] must be finite, got inf"),
    "source of none": (lambda r: r.__setitem__("source", None), "source must be text, got NoneType"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_profile_is_refused_with_the_file_the_field_and_the_reason(tmp_path, record, case):
    mutate, message = MALFORMED[case]
    mutate(record)
    path = write(tmp_path / "profile.json", record)
    with pytest.raises(SegueError) as error:
        Profile.load(path, GRAPH)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_mutated_profile_file_is_read_or_refused_in_one_line(mutations, refuses_or_reads, scratch, data):
    PROFILE.save(scratch / "profile.json", GRAPH)
    record = json.loads((scratch / "profile.json").read_text())
    path = write(scratch / "mutated.json", data.draw(mutations(record)))
    profile = refuses_or_reads(lambda p: Profile.load(p, GRAPH), path)
    if profile is not None:
        assert np.isfinite(profile.forward_s).all()


def test_costs_divide_the_profile_by_each_devices_speed():
    devices = (Device("a", "cpu", 1e9, 2.0, 0.25), Device("b", "cpu", 1e9, 0.5))
    topology = Topology("t", devices, uniform_links("ab", 0.0, 1.0))
    costs = make_costs(GRAPH, topology, PROFILE)
    assert costs.on_devices(costs.forward_s).tolist() == [[0.5, 2.0], [1.0, 4.0]]
    assert costs.on_devices(costs.backward_s).tolist() == [[1.5, 6.0], [0.0, 0.0]]
    assert costs.on_devices(costs.update_s).tolist() == [[0.25, 1.0], [0.0, 0.0]]
    assert costs.overhead_s.tolist() == [0.25, 0.0]
    assert costs.state_bytes.tolist() == [400.0, 8.0]
    assert make_costs(GRAPH, topology, PROFILE, 1.0).state_bytes.tolist() == [300.0, 8.0]


def test_an_op_takes_the_longer_of_arithmetic_and_traffic():
    graph = make_graph("g", [(0, 1)], forward_flops=[2e10, 0], backward_flops=[4e10, 0], read_bytes=[0, 5e9])
    profile = roofline(graph)
    assert profile.forward_s.tolist() == [1.0, 1.0]
    assert profile.backward_s.tolist() == [2.0, 0.0]


@given(batch=st.integers(1, 500), parts=st.integers(1, 40))
def test_a_batch_is_cut_as_torch_chunk_cuts_it(batch, parts):
    torch = pytest.importorskip("torch")
    sizes = microbatch_sizes(batch, parts)
    assert sizes == [len(part) for part in torch.zeros(batch).chunk(parts)]
    assert fractions(sizes)[0] == 1.0
    assert fractions(sizes).sum() == pytest.approx(batch / sizes[0])
