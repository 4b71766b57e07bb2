import json
from pathlib import Path

import pytest

from segue.experiments.cli import main
from tests.placement.workloads import random_record

USER_FILE = """
import torch

class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 4)

    def forward(self, x):
        return self.linear(x).sum()

class Branching(Two):
    def forward(self, x):
        y = self.linear(x)
        return y.sum() if float(y.detach().sum()) > 1e9 else (2 * y).sum()

def two():
    return Two(), (torch.randn(4, 8),)

def branching():
    return Branching(), (torch.randn(4, 8),)
"""
DEVICE = "  - {{name: {name}, kind: emulated, memory_bytes: {memory}, speed: {speed}}}\n"
SMALL = ["--model", "mlp", "--image-size", "8", "--costs", "roofline", "--batch-size", "8", "--microbatches", "2"]


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    path = tmp_path / "user_two.py"
    path.write_text(USER_FILE)
    return path


def topology(folder: Path, count: int, memory: str = "1.0e9", speed: float = 0.3) -> str:
    path = folder / f"devices-{count}.yaml"
    devices = "".join(DEVICE.format(name=f"d{i}", memory=memory, speed=speed) for i in range(count))
    link = "default_link: {latency_s: 1.0e-4, bandwidth_bytes_per_s: 1.0e9}\n"
    path.write_text(f"format: segue.topology/1\ndevices:\n{devices}{link}")
    return str(path)


def compare(capsys, *arguments: str) -> str:
    assert main(["compare", "--evaluations", "30", *arguments]) == 0
    return capsys.readouterr().out


def test_a_model_is_compared_and_the_rows_and_a_picture_are_written(tmp_path, capsys):
    out = compare(capsys, *SMALL, "--json", str(tmp_path / "rows.json"))
    rows = json.loads((tmp_path / "rows.json").read_text())
    fields = {"planner", "value", "feasible", "clock", "planning_s", "evaluations", "best"}
    assert all(fields <= set(row) for row in rows)
    assert [row["best"] for row in rows] == [True] + [False] * (len(rows) - 1)
    assert rows[0]["value"] == min(row["value"] for row in rows if row["feasible"])
    assert {"agent", "annealing", "equal-layers", "single:dev0", "data-parallel:speed"} <= {r["planner"] for r in rows}
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")
    assert "captured with torch.export" in out
    assert "costs: roofline of a reference core" in out
    assert "Step times are simulated." in out
    assert "Recommendation: " in out


def test_a_model_of_two_ops_is_compared(user_file, capsys):
    out = compare(capsys, "--model", f"{user_file}:two", "--costs", "roofline")
    assert "2 ops" in out
    assert "batch 4 in 4 microbatches" in out


def test_what_export_refuses_is_traced_and_said_so(user_file, capsys):
    out = compare(capsys, "--model", f"{user_file}:branching", "--planners", "manual,annealing")
    assert "torch.export refused (" in out
    assert "traced at module granularity" in out
    assert "roofline" in out


def test_a_model_that_fits_nowhere_says_how_close_it_came(tmp_path, capsys):
    out = compare(capsys, *SMALL, "--topology", topology(tmp_path, 2, memory="1.0e5"))
    assert "This fits nowhere: the closest is " in out
    assert " of 0.1 MiB" in out


def test_one_device_is_compared(tmp_path, capsys):
    out = compare(capsys, *SMALL, "--topology", topology(tmp_path, 1))
    assert "there is no split over several devices" in out


def test_64_devices_are_compared(tmp_path, capsys):
    out = compare(capsys, *SMALL, "--topology", topology(tmp_path, 64), "--planners", "manual,heft,agent,data-parallel")
    assert "64 devices" in out
    assert "agent" in out


def test_a_public_workload_is_compared(tmp_path, capsys):
    path = tmp_path / "workload.json"
    path.write_text(json.dumps(random_record(3)))
    out = compare(capsys, "--graph", str(path), "--planners", "manual,annealing,agent")
    assert "max load (ms)" in out
    assert "not fit" in out
    assert "Recommendation: " in out


def test_placements_from_files_take_part(tmp_path, capsys):
    written = str(tmp_path / "placement.json")
    assert main(["place", *SMALL, "--planner", "equal-time", "--out", written]) == 0
    (tmp_path / "map.json").write_text('{"": "dev1"}')
    given = ["--placement", written, "--placement", str(tmp_path / "map.json")]
    compare(capsys, *SMALL, "--planners", "equal-time,single", *given, "--json", str(tmp_path / "rows.json"))
    rows = {row["planner"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert rows[f"file:{written}"]["value"] == rows["equal-time"]["value"]
    assert rows[f"file:{tmp_path}/map.json"]["value"] == rows["single:dev1"]["value"]
    assert rows[f"file:{written}"]["kind"] == "manual"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--planners", "magic"], "planner 'magic': no such planner"),
        (["--planners", ","], "nothing to compare"),
        (["--objective", "speed"], "--objective 'speed': no such objective"),
        (["--costs", "guess"], "--costs 'guess': no such costs"),
        (["--model", "alexnet"], "alexnet"),
        (["--json", "/nowhere/rows.json"], "--json /nowhere/rows.json: /nowhere is not a folder"),
        (["--picture", "/"], "--picture /: is a folder"),
        (["--budget", "0"], "--budget must be > 0 seconds"),
        (["--evaluations", "0"], "--evaluations must be >= 1"),
        (["--seed", "-1"], "--seed must be >= 0"),
        (["--policy", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--placement", "nowhere.json"], "nowhere.json"),
        (["--profile", "nowhere.json"], "nowhere.json"),
        (["--graph", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--topology", "nowhere.txt"], "nowhere.txt"),
        (["--topology", "cloud"], "--topology 'cloud'"),
        (["--measure", "--objective", "latency"], "--measure: only training steps"),
    ],
)
def test_bad_options_are_refused_in_one_line(arguments, reason, capsys):
    assert main(["compare", *SMALL, *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("segue: error: ")
    assert reason in error
    assert "\n" not in error


@pytest.mark.parametrize("text", ["{", "[]", '{"": 99}', '{"format": "segue.placement/1"}', "\0"])
def test_an_unreadable_placement_is_named(text, tmp_path, capsys):
    path = tmp_path / "placement.json"
    path.write_text(text)
    assert main(["compare", *SMALL, "--planners", "single", "--placement", str(path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_devices_that_are_not_here_are_not_measured(tmp_path, capsys):
    path = Path(topology(tmp_path, 2))
    path.write_text(path.read_text().replace("kind: emulated", "kind: cuda, index: 77"))
    assert main(["compare", *SMALL, "--topology", str(path), "--measure"]) == 2
    assert "device d0: is CUDA device 77, but this machine has" in capsys.readouterr().err


@pytest.mark.slow
def test_the_best_placements_are_measured_beside_what_was_predicted(tmp_path, capsys):
    devices = topology(tmp_path, 2, speed=0.1)
    size = ["--model", "mlp", "--image-size", "32", "--batch-size", "64", "--microbatches", "2"]
    path = tmp_path / "rows.json"
    names = "single,equal-layers,annealing"
    out = compare(capsys, *size, "--topology", devices, "--planners", names, "--measure", "--json", str(path))
    assert "emulated (ms)" in out
    rows = json.loads(path.read_text())
    ran = [row for row in rows if row["measured_s"] is not None]
    assert len(ran) >= 2
    assert {row["measured_clock"] for row in ran} == {"emulated"}
    # The declared pace is a floor; how far above it a busy machine ends up is no matter of this test.
    assert all(0 < row["predicted_over_measured"] < 1.05 for row in ran)


def test_the_same_seed_and_evaluations_write_the_same_rows(tmp_path, capsys):
    def rows(name):
        path = tmp_path / name
        compare(capsys, *SMALL, "--planners", "annealing,agent,random", "--seed", "5", "--json", str(path))
        return [{**row, "planning_s": 0} for row in json.loads(path.read_text())]

    assert rows("one.json") == rows("two.json")
