import json
from pathlib import Path

import pytest

from segue.experiments.cli import main
from segue.experiments.trace import read_traces
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
    assert main(["place", "--graph", str(graph), "--budget", "0.1", "--out", str(out)]) == 1
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


SMALL = ["--model", "mlp", "--image-size", "8", "--costs", "roofline", "--batch-size", "8", "--microbatches", "2"]


def place(*arguments: str) -> int:
    return main(["place", *SMALL, "--evaluations", "40", *arguments])


def test_the_best_placement_of_a_model_is_written(tmp_path, capsys):
    out = tmp_path / "placement.json"
    assert place("--out", str(out)) == 0
    record = json.loads(out.read_text())
    assert record["format"] == "segue.placement/1"
    assert record["microbatches"] == 2
    assert record["predicted_step_time_s"] > 0
    assert f"written to {out}" in capsys.readouterr().out


def test_a_placement_is_written_in_every_form(tmp_path, capsys):
    files = {name: tmp_path / name for name in ("placement.json", "map.json", "trace.json", "schedule.csv")}
    written = ["--out", "placement.json", "--device-map", "map.json", "--trace", "trace.json"]
    written += ["--pipelining-csv", "schedule.csv"]
    arguments = [str(files.get(name, name)) for name in written]
    assert place("--planner", "equal-layers", "--table", *arguments) == 0
    output = capsys.readouterr().out
    assert "rank 0 to 3 are dev0, dev1, dev2, dev3" in output
    assert "MiB of state" in output
    assert "loss_fn" in output
    devices = json.loads(files["placement.json"].read_text())["devices"]
    assert set(devices.values()) == {"dev0", "dev1", "dev2", "dev3"}
    assert set(json.loads(files["map.json"].read_text()).values()) == {0, 1, 2, 3}
    assert "predicted (simulated)" in read_traces(files["trace.json"])
    assert files["schedule.csv"].read_text().splitlines()[0] == "0F0,0F1,0B0,0B1"


def test_what_fits_nowhere_is_written_and_said(tmp_path, capsys):
    topology = tmp_path / "topology.yaml"
    device = "devices: [{name: tiny, kind: emulated, memory_bytes: 1.0e5}]"
    topology.write_text(f"format: segue.topology/1\n{device}\n")
    assert place("--topology", str(topology), "--planner", "single:tiny", "--out", str(tmp_path / "p.json")) == 1
    assert "segue: not allowed: tiny: " in capsys.readouterr().err
    assert (tmp_path / "p.json").exists()


@pytest.mark.parametrize("objective", ["max-load", "latency"])
def test_a_model_is_placed_for_other_objectives(objective, tmp_path, capsys):
    assert place("--objective", objective, "--planner", "annealing", "--out", str(tmp_path / "p.json")) == 0
    assert f"annealing: {objective} " in capsys.readouterr().out
    assert json.loads((tmp_path / "p.json").read_text())["predicted_step_time_s"] is None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--planner", "magic"], "planner 'magic': no such planner"),
        (["--planner", "data-parallel"], "--planner data-parallel: makes no placement"),
        (["--planner", "round-robin", "--pipelining-csv", "s.csv"], "torch's pipelines take linear chains"),
        (["--objective", "max-load", "--trace", "t.json"], "--trace: max-load has no timeline"),
        (["--objective", "latency", "--pipelining-csv", "s.csv"], "only for --objective step-time"),
        (["--device-map", "/nowhere/map.json"], "--device-map /nowhere/map.json: /nowhere is not a folder"),
        (["--out", "/nowhere/placement.json"], "--out /nowhere/placement.json: /nowhere is not a folder"),
        (["--budget", "nan"], "budget must be > 0"),
    ],
)
def test_bad_options_for_a_model_are_refused_in_one_line(arguments, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert place(*arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("segue: error: ")
    assert reason in error
    assert "\n" not in error
    assert not (tmp_path / "placement.json").exists()


def test_a_workload_has_no_modules_to_write(graph, tmp_path, capsys):
    assert main(["place", "--graph", str(graph), "--table", "--out", str(tmp_path / "s.json")]) == 2
    assert "--table: only for a --model" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_starts_from_what_was_placed(tmp_path):
    out, size = tmp_path / "placement.json", ["--model", "mlp", "--batch-size", "16", "--microbatches", "3"]
    assert main(["place", *size, "--topology", "emulated-2", "--planner", "equal-time", "--out", str(out)]) == 0
    run = ["--topology", "emulated-2", "--start", str(out), "--agent", "off", "--steps", "2", "--slow", "none"]
    assert main(["run", *size, *run, "--run-dir", str(tmp_path / "run")]) == 0
    started = json.loads((tmp_path / "run" / "placement-start.json").read_text())
    assert started["devices"] == json.loads(out.read_text())["devices"]
