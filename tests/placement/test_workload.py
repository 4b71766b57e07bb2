import copy
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segue.placement.errors import SegueError
from segue.placement.split_file import read_map, read_split, write_split
from segue.placement.workload import Workload, read_workload, topological_order
from tests.placement.workloads import BENCHMARK, needs_benchmark, random_record

RECORD = random_record(1)


def write(folder: Path, record) -> Path:
    path = folder / "workload.json"
    path.write_text(json.dumps(record))
    return path


def read(folder: Path, record) -> Workload:
    return read_workload(write(folder, record))


def changed(place: tuple, value) -> dict:
    record = copy.deepcopy(RECORD)
    holder = record
    for key in place[:-1]:
        holder = holder[key]
    if value is ...:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    return record


def test_a_workload_is_read_in_the_file_s_order(tmp_path):
    workload = read(tmp_path, RECORD)
    assert workload.ids.tolist() == [3, 13, 23, 33, 43, 53]
    assert workload.color.tolist() == [0, 0, -1, -1, -1, -1]
    assert workload.supported.tolist() == [True] * 4 + [False, True]
    assert (workload.accelerators, workload.cpus, workload.accelerator_bytes) == (2, 1, 9.0)
    assert len(workload.edges) == len(RECORD["edges"])
    order = np.argsort(topological_order(workload))
    assert (order[workload.edges[:, 0]] < order[workload.edges[:, 1]]).all()


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (("nodes", 2, "fpgaLatency"), -1, "node 23: fpgaLatency must be >= 0, got -1"),
        (("nodes", 2, "cpuLatency"), "fast", "node 23: cpuLatency must be a number"),
        (("nodes", 2, "size"), float("nan"), "node 23: size must be finite"),
        (("nodes", 2, "size"), ..., "node 23: size: missing"),
        (("nodes", 2, "supportedOnFpga"), 2, "node 23: supportedOnFpga must be 0 or 1, got 2"),
        (("nodes", 0, "colorClass"), "red", "node 3: colorClass must be a whole number, got 'red'"),
        (("nodes", 2, "id"), 13, "id 13 appears twice"),
        (("nodes", 2, "id"), None, r"nodes\[2\]: id must be a whole number, got None"),
        (("nodes", 2), 5, r"nodes\[2\]: expected an object"),
        (("nodes",), [], "edges|at least one node"),
        (("edges", 0, "destId"), 99, r"edges\[0\]: destId: there is no node 99"),
        (("edges", 0, "cost"), -2, r"edges\[0\]: cost must be >= 0"),
        (("edges", 0, "destId"), RECORD["edges"][0]["sourceId"], "edge to itself"),
        (("edges",), {}, "edges: expected a list"),
        (("maxFPGAs",), 1.5, "maxFPGAs must be a whole number"),
        (("maxFPGAs",), -1, "maxFPGAs must be >= 0, got -1"),
        (("maxCPUs",), 0, "maxCPUs is 0, but some nodes can only run on a CPU"),
        (("maxSizePerFPGA",), ..., "maxSizePerFPGA: missing"),
    ],
)
def test_a_malformed_workload_is_named_with_its_field(tmp_path, place, value, reason):
    path = write(tmp_path, changed(place, value))
    with pytest.raises(SegueError, match=reason) as error:
        read_workload(path)
    assert str(error.value).startswith(str(path))


def test_a_cycle_and_unequal_costs_are_refused(tmp_path):
    first = RECORD["edges"][0]
    back = {"sourceId": first["destId"], "destId": first["sourceId"], "cost": 0}
    others = [edge for edge in RECORD["edges"] if edge["sourceId"] != first["destId"]]
    with pytest.raises(SegueError, match="a cycle leads to node"):
        read(tmp_path, {**RECORD, "edges": [*others, back]})
    with pytest.raises(SegueError, match="all edges out of node"):
        read(tmp_path, {**RECORD, "edges": [first, {**first, "cost": first["cost"] + 1}]})


def test_an_edge_given_twice_counts_once(tmp_path):
    again = {**RECORD, "edges": RECORD["edges"] * 2}
    assert (read(tmp_path, again).edges == read(tmp_path, RECORD).edges).all()


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_reader_refuses_mutated_files_or_reads_them(tmp_path, data):
    record = copy.deepcopy(RECORD)
    holder = data.draw(st.sampled_from([record, *record["nodes"], *record["edges"], record["nodes"], record["edges"]]))
    key = data.draw(st.sampled_from(list(holder) if isinstance(holder, dict) else list(range(len(holder)))))
    if data.draw(st.booleans()):
        del holder[key]
    else:
        holder[key] = data.draw(junk)
    text = json.dumps(record)
    cut = data.draw(st.none() | st.integers(0, len(text)))
    path = tmp_path / "workload.json"
    path.write_text(text[:cut])
    message = None
    try:
        read_workload(path)
    except SegueError as error:
        message = str(error)
    assert message is None or message.startswith(f"{path}: ")


def test_a_written_split_is_read_back(tmp_path):
    workload = read(tmp_path, RECORD)
    devices = np.array([2, 2, 0, 1, 0, 2])
    write_split(tmp_path / "split.json", workload, devices, {"maxLoad": 4.0})
    record = json.loads((tmp_path / "split.json").read_text())
    assert record == {"cpus": [{"nodes": [23, 43]}], "fpgas": [{"nodes": [33]}, {"nodes": [3, 13, 53]}], "maxLoad": 4.0}
    assert read_split(tmp_path / "split.json", workload).tolist() == devices.tolist()


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"cpus": []}, "fpgas: expected a list"),
        ({"cpus": [5], "fpgas": []}, r"cpus\[0\]: nodes: expected a list"),
        ({"cpus": [{"nodes": [3, 3]}], "fpgas": []}, r"cpus\[0\]: node 3 is listed twice"),
        ({"cpus": [{"nodes": [3, 4]}], "fpgas": []}, r"cpus\[0\]: there is no node 4"),
        ({"cpus": [{"nodes": ["a"]}], "fpgas": []}, r"cpus\[0\]: nodes must be a whole number"),
        ({"cpus": [{"nodes": [3]}], "fpgas": []}, "node 13 is on no device"),
        ([], "expected an object"),
    ],
)
def test_a_malformed_split_is_named_with_its_place(tmp_path, record, reason):
    workload = read(tmp_path, RECORD)
    path = tmp_path / "split.json"
    path.write_text(json.dumps(record))
    with pytest.raises(SegueError, match=reason):
        read_split(path, workload)


@pytest.mark.parametrize("record", [{"x": 1}, {"3": -1}, {"3": "b"}, {"3": 1}, {"4": 1}, {"9" * 5000: 1}])
def test_a_malformed_map_is_refused(tmp_path, record):
    workload = read(tmp_path, RECORD)
    path = tmp_path / "map.json"
    path.write_text(json.dumps(record))
    with pytest.raises(SegueError, match=r"map\.json: "):
        read_map(path, workload)


@needs_benchmark
@pytest.mark.parametrize(
    "path", sorted(BENCHMARK.glob("*/*Graphs*/*.json")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_every_public_workload_is_read_and_unchanged_by_its_own_split(path, tmp_path):
    workload = read_workload(path)
    assert workload.num_nodes == len(json.loads(path.read_text())["nodes"])
    devices = np.arange(workload.num_nodes) % (workload.accelerators + 1)
    write_split(tmp_path / "split.json", workload, devices)
    assert (read_split(tmp_path / "split.json", workload) == devices).all()
