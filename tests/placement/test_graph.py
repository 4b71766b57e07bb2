import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.placement.errors import SegueError
from segue.placement.graph import COSTS, Graph, check_graph, make_graph


def small_graph(**changes):
    return make_graph("small", [(0, 1), (0, 2), (1, 2)], batch_size=2, output_bytes=[1, 2, 3], **changes)


def write(path, record):
    path.write_text(json.dumps(record))
    return path


def test_a_saved_graph_is_read_back_whole(tmp_path):
    graph = small_graph(kinds=["conv2d", "relu", "add"], modules=["a", "", "b.c"], colocation=[0, -1, 0])
    graph.save(tmp_path / "graph.json")
    again = Graph.load(tmp_path / "graph.json")
    assert again.to_record() == graph.to_record()
    assert again.hash == graph.hash
    assert again.edges.dtype == np.int64
    assert again.requires_grad.dtype == bool


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_graph_survives_its_file(problems, scratch, data):
    graph = data.draw(problems).graph
    graph.save(scratch / "graph.json")
    assert Graph.load(scratch / "graph.json").to_record() == graph.to_record()


def test_the_hash_identifies_structure_not_costs():
    assert small_graph().hash == small_graph(forward_flops=7.0).hash
    assert small_graph().hash != small_graph(names=["a", "b", "c"]).hash
    assert small_graph().hash != make_graph("small", [(0, 1), (1, 2)]).hash


def test_edges_are_unique_and_sorted():
    graph = make_graph("g", [(1, 2), (0, 1), (1, 2)])
    assert graph.edges.tolist() == [[0, 1], [1, 2]]
    assert graph.index == {"op0": 0, "op1": 1, "op2": 2}


def test_a_graph_for_more_samples_grows_in_all_but_its_parameters():
    graph = small_graph(**dict.fromkeys(set(COSTS) - {"output_bytes"}, 4.0)).scaled(6)
    assert graph.batch_size == 6
    assert graph.output_bytes.tolist() == [3, 6, 9]
    assert graph.forward_flops.tolist() == [12, 12, 12]
    assert graph.parameter_bytes.tolist() == graph.buffer_bytes.tolist() == [4, 4, 4]


def change(field, value):
    return lambda record: record.__setitem__(field, value)


MALFORMED = {
    "missing field": (lambda r: r.pop("kinds"), "kinds: missing"),
    "unknown field": (change("speed", 1), "speed: unknown field; known: name, "),
    "wrong format": (change("format", "segue.graph/9"), "format: expected 'segue.graph/1', got 'segue.graph/9'"),
    "no format": (lambda r: r.pop("format"), "format: expected 'segue.graph/1', got None"),
    "duplicate name": (change("names", ["a", "b", "a"]), "names: 'a' appears twice"),
    "no ops": (change("names", []), "names: a graph needs at least one op"),
    "names not strings": (change("names", ["a", 1, "b"]), "names: expected a list of strings"),
    "name not text": (change("name", ["g"]), "name must be text, got list"),
    "half a surrogate": (change("names", ["a", "b", "\ud800"]), r"names: '\ud800' is not valid Unicode"),
    "negative cost": (change("forward_flops", [0, -3, 0]), "forward_flops[op1] must be finite and >= 0, got -3"),
    "NaN cost": (change("saved_bytes", [0, 0, float("nan")]), "saved_bytes[op2] must be finite and >= 0, got nan"),
    "infinite cost": (change("read_bytes", [float("inf"), 0, 0]), "read_bytes[op0] must be finite and >= 0, got inf"),
    "costs as text": (change("output_bytes", ["1", "2", "3"]), "output_bytes: expected a list of float64"),
    "too few costs": (change("output_bytes", [1.0]), "output_bytes: expected 3 entries, one an op, got 1"),
    "nested costs": (change("output_bytes", [[1.0], [2.0], [3.0]]), "output_bytes: expected a list of float64"),
    "backward edge": (change("edges", [[0, 1], [2, 1]]), "edges: (2, 1) does not run forward"),
    "loop": (change("edges", [[1, 1]]), "edges: (1, 1) does not run forward"),
    "edge outside": (change("edges", [[0, 3]]), "edges: (0, 3) names an op outside 0..2"),
    "negative edge": (change("edges", [[-1, 2]]), "edges: (-1, 2) names an op outside 0..2"),
    "edge twice": (change("edges", [[0, 1], [0, 1]]), "edges: a pair appears twice"),
    "edge of three": (change("edges", [[0, 1, 2]]), "edges: expected a list of int64: expected pairs"),
    "fractional edge": (change("edges", [[0.5, 1]]), "edges: expected a list of int64"),
    "ragged edges": (change("edges", [[0, 1], [1]]), "edges: expected a list of int64"),
    "batch of none": (change("batch_size", 0), "batch_size must be >= 1, got 0"),
    "batch as text": (change("batch_size", "2"), "batch_size: expected a whole number, got '2'"),
    "flags as numbers": (change("requires_grad", [1, 0, 1]), "requires_grad: expected a list of bool"),
    "unknown label": (change("colocation", [0, -7, 0]), "colocation[op1] must be -1 (free) or a label >= 0, got -7"),
    "huge label": (change("colocation", [0, 2**63, 0]), "colocation: expected a list of int64"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_graph_is_refused_with_the_file_the_field_and_the_reason(tmp_path, case):
    mutate, message = MALFORMED[case]
    record = json.loads(json.dumps(small_graph().to_record()))
    mutate(record)
    path = write(tmp_path / "graph.json", record)
    with pytest.raises(SegueError) as error:
        Graph.load(path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[1]", "expected an object at the top, got list"),
        (b"\xff\xfe", "not UTF-8 text"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"format": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_a_file_that_is_not_a_json_object_is_refused(tmp_path, content, message):
    path = tmp_path / "graph.json"
    path.write_bytes(content)
    with pytest.raises(SegueError, match=message):
        Graph.load(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(SegueError, match=r"none\.json: cannot be read: No such file"):
        Graph.load(tmp_path / "none.json")
    with pytest.raises(SegueError, match="cannot be read"):
        Graph.load(tmp_path)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_mutated_graph_file_is_read_or_refused_in_one_line(mutations, refuses_or_reads, scratch, data):
    record = data.draw(mutations(json.loads(json.dumps(small_graph().to_record()))))
    graph = refuses_or_reads(Graph.load, write(scratch / "mutated.json", record))
    if graph is not None:
        check_graph(graph)
        assert graph.hash


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_graph_file_with_broken_bytes_is_read_or_refused_in_one_line(refuses_or_reads, scratch, data):
    content = bytearray(json.dumps(small_graph().to_record()).encode())
    start = data.draw(st.integers(0, len(content) - 1))
    content[start : start + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))
    path = scratch / "broken.json"
    path.write_bytes(content)
    refuses_or_reads(Graph.load, path)


def test_costs_that_no_graph_has_are_refused():
    with pytest.raises(SegueError, match="unknown costs \\['flops'\\]"):
        make_graph("g", [(0, 1)], flops=1.0)
