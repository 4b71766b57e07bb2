import json
from pathlib import Path

import pytest

from segue.experiments.bench_placement import BEST_OF, bench_placement, planners_table
from segue.experiments.bench_placement import main as bench
from segue.experiments.cli import main
from tests.placement.workloads import random_record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for place in ("throughput/Small", "latency/Small"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "one.json").write_text(json.dumps(random_record(3)))
    reference = {"max_load": [{"workload": "Small/one", "best_known": 40.0, "expert": None}], "units": "milliseconds"}
    (tmp_path / "reference.json").write_text(json.dumps(reference))
    return tmp_path


def test_workloads_are_found_and_held_against_their_best_known_values(folder):
    rows = [row for row in bench_placement(folder, None, evaluations=100) if row["planner"] == BEST_OF]
    latency, load = rows
    assert (latency["objective"], latency["best_known"], latency["gap"]) == ("latency", None, None)
    assert (load["objective"], load["best_known"]) == ("max-load", 40.0)
    assert load["gap"] == pytest.approx(load["value"] / 40 - 1)


def test_the_best_of_all_planners_has_a_row(folder):
    rows = bench_placement(folder / "throughput", None, planners=["manual", "annealing", "random"], evaluations=100)
    best, others = rows[-1], rows[:-1]
    assert best["value"] == min(row["value"] for row in others if row["feasible"])
    assert best["evaluations"] == sum(row["evaluations"] for row in others)
    table = planners_table(rows)
    assert table.count("single") == 1
    assert table.splitlines()[-1].split()[:4] == ["max-load", "best", "of", "all"]


@pytest.mark.parametrize("front", [bench, lambda arguments: main(["bench", "placement", *arguments])])
def test_both_front_doors_print_the_tables_and_write_the_rows(front, folder, capsys):
    options = ["--seconds", "0.1", "--planners", "annealing,heft", "--json", str(folder / "rows")]
    assert front([str(folder), *options]) == 0
    out = capsys.readouterr().out
    assert "Small/one" in out
    assert "best of all" in out
    assert len(json.loads((folder / "rows").read_text())) == 6


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--planners", "magic"], "planner 'magic'"),
        (["--seconds", "0"], "budget must be > 0"),
        (["--json", "/nowhere/rows"], "/nowhere is not a folder"),
    ],
)
def test_bad_options_are_refused(folder, arguments, reason, capsys):
    assert bench([str(folder), *arguments]) == 2
    assert reason in capsys.readouterr().err


def test_a_folder_without_workloads_is_refused(tmp_path, capsys):
    assert bench([str(tmp_path)]) == 2
    assert "holds no workload" in capsys.readouterr().err
