import json

import pytest

from segue.experiments.trace import read_traces, write_trace, write_traces
from segue.placement.clock import Span
from segue.placement.errors import SegueError

SPANS = (
    Span("dev1", "F0 b", 0.002, 0.004),
    Span("dev0->dev1", "f0", 0.0015, 0.002),
    Span("dev0", "F0 a", 0.0, 0.0015),
)


def read(path):
    events = json.loads(path.read_text())["traceEvents"]
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    bars = [e for e in events if e["ph"] == "X"]
    return [(processes[e["pid"]], names[e["pid"], e["tid"]], e["name"], e["ts"], e["dur"], e["cat"]) for e in bars]


def test_a_trace_has_a_track_for_each_device_and_link_in_microseconds(tmp_path):
    path = tmp_path / "trace.json"
    write_trace(path, SPANS, "predicted (simulated)")
    assert read(path) == [
        ("predicted (simulated)", "dev0", "F0 a", 0.0, 1500.0, "compute"),
        ("predicted (simulated)", "dev0->dev1", "f0", 1500.0, 500.0, "transfer"),
        ("predicted (simulated)", "dev1", "F0 b", 2000.0, 2000.0, "compute"),
    ]
    order = {
        e["args"]["name"]: e["tid"] for e in json.loads(path.read_text())["traceEvents"] if e["name"] == "thread_name"
    }
    assert sorted(order, key=order.__getitem__) == ["dev0", "dev1", "dev0->dev1"]


def test_predicted_and_measured_are_two_processes(tmp_path):
    path = tmp_path / "trace.json"
    write_traces(path, {"predicted": SPANS, "measured": SPANS[:1]})
    assert [row[:3] for row in read(path)][3:] == [("measured", "dev1", "F0 b")]
    assert {row[0] for row in read(path)} == {"predicted", "measured"}


def test_an_empty_timeline_is_still_a_trace(tmp_path):
    write_trace(tmp_path / "trace.json", (), "empty")
    assert read(tmp_path / "trace.json") == []


def test_a_trace_reads_back(tmp_path):
    path = tmp_path / "trace.json"
    write_traces(path, {"predicted": SPANS, "measured": SPANS[:1]})
    assert {title: sorted(spans) for title, spans in read_traces(path).items()} == {
        "predicted": sorted(SPANS),
        "measured": list(SPANS[:1]),
    }


def test_a_file_that_is_no_trace_is_named(tmp_path):
    (tmp_path / "other.json").write_text("[1, 2]")
    with pytest.raises(SegueError, match=r"other\.json: not a trace of segue"):
        read_traces(tmp_path / "other.json")
