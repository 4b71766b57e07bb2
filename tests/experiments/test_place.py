import json
from pathlib import Path

import pytest

from segue.experiments.bench_placement import bench_placement
from segue.experiments.bench_placement import main as bench
from segue.experiments.cli import main
from segue.placement.objectives import OBJECTIVES
from segue.placement.split_file import read_split
from segue.placement.workload import read_workload
from tests.placement.workloads import random_record


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "workload.json"
    path.write_text(json.dumps(random_record(3)))
    return path


@pytest.mark.parametrize(("objective", "field"), [("max-load", "maxLoad"), ("latency", "totalLatency")])
def test_the_split_is_worth_what_it_says(graph, tmp_path, capsys, objective, field):
    out = tmp_path / "split.json"
    options = ["--objective", objective, "--budget", "0.2", "--seed", "1", "--out", str(out)]
    assert main(["place", "--graph", str(graph), *options]) == 0
    workload, record = read_workload(graph), json.loads(out.read_text())
    score = OBJECTIVES[objective](workload, read_split(out, workload))
    assert score.feasible
    assert record[field] == pytest.approx(score.value_ms)
    assert len(record["cpus"]) == workload.cpus
    assert len(record["fpgas"]) == workload.accelerators
    assert f"{objective} {score.value_ms:.6g} ms" in capsys.readouterr().out


def test_what_is_not_allowed_is_written_and_said(tmp_path, capsys):
    record = random_record(1, maxCPUs=0, maxSizePerFPGA=1.0)
    for node in record["nodes"]:
        node.update(supportedOnFpga=1, size=2.0)
    graph, out = tmp_path / "workload.json", tmp_path / "split.json"
    graph.write_text(json.dumps(record))
    assert main(["place", "--graph", str(graph), "--budget", "0.1", "--out", str(out)]) == 0
    assert "segue: not allowed: " in capsys.readouterr().err
    read_split(out, read_workload(graph))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--graph", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--objective", "speed"], "objective 'speed': no such objective"),
        (["--budget", "0"], "budget must be > 0"),
        (["--budget", "nan"], "budget must be > 0"),
        (["--evaluations", "-1"], "--evaluations must be >= 0"),
        (["--seed", "-1"], "--seed must be >= 0"),
        (["--out", "/nowhere/split.json"], "/nowhere is not a folder"),
        (["--out", "/"], "is a folder"),
    ],
)
def test_bad_options_are_refused_in_one_line(graph, tmp_path, capsys, arguments, reason):
    given = ["--graph", str(graph), "--budget", "0.1", "--out", str(tmp_path / "split.json")]
    assert main(["place", *given, *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("segue: error: ")
    assert reason in error
    assert "\n" not in error
    assert not (tmp_path / "split.json").exists()


def test_a_malformed_workload_is_named_with_its_node_and_field(tmp_path, capsys):
    record = random_record(3)
    record["nodes"][2]["cpuLatency"] = -4
    path = tmp_path / "workload.json"
    path.write_text(json.dumps(record))
    assert main(["place", "--graph", str(path), "--out", str(tmp_path / "split.json")]) == 2
    assert f"{path}: node 23: cpuLatency must be >= 0, got -4" in capsys.readouterr().err


def test_the_bench_finds_workloads_and_their_best_known_values(tmp_path, capsys):
    for place in ("throughput/Small", "latency/Small"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "one.json").write_text(json.dumps(random_record(3)))
    reference = {"max_load": [{"workload": "Small/one", "best_known": 40.0, "expert": None}], "units": "milliseconds"}
    (tmp_path / "reference.json").write_text(json.dumps(reference))
    latency, load = bench_placement(tmp_path, 0.1)
    assert (latency["objective"], latency["best_known"], latency["gap"]) == ("latency", None, None)
    assert (load["objective"], load["best_known"]) == ("max-load", 40.0)
    assert load["gap"] == pytest.approx(load["value"] / 40 - 1)
    assert bench([str(tmp_path), "--seconds", "0.1", "--json", str(tmp_path / "rows")]) == 0
    assert "Small/one" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "rows").read_text())) == 2


def test_a_folder_without_workloads_is_refused(tmp_path, capsys):
    assert bench([str(tmp_path)]) == 2
    assert "holds no workload" in capsys.readouterr().err
