"""The main job from the command line, on a small model: real processes, real training, emulated devices."""

import csv
import json
import re
import threading
from pathlib import Path

import pytest

from segue.experiments.approval import answer_file
from segue.experiments.cli import main
from segue.experiments.run_files import PROPOSAL, read_proposal

pytestmark = [pytest.mark.slow, pytest.mark.quiet, pytest.mark.timeout(300)]

TOPOLOGY = """
format: segue.topology/1
devices:
  - {name: slow, kind: emulated, memory_bytes: 1.0e9, speed: 0.05, overhead_s: 0.001}
  - {name: fast, kind: emulated, memory_bytes: 1.0e9, speed: 0.2, overhead_s: 0.001}
default_link: {latency_s: 1.0e-4, bandwidth_bytes_per_s: 4.0e+8}
"""
STEPS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "topology.yaml").write_text(TOPOLOGY)
    return folder


def arguments(folder: Path, run: str, *more: str) -> list[str]:
    options = {
        "--model": "resnet",
        "--image-size": "8",
        "--batch-size": "16",
        "--microbatches": "2",
        "--steps": str(STEPS),
        "--topology": str(folder / "topology.yaml"),
        "--evaluations": "100",
        "--checkpoint-every": "10",
        "--run-dir": str(folder / run),
    }
    return ["run", *(text for option in options.items() for text in option), *more]


def losses(folder: Path) -> list[str]:
    with (folder / "losses.csv").open() as file:
        return [row["loss"] for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def with_agent(folder: Path) -> Path:
    assert main(arguments(folder, "on", "--slow", "fast@40:3", "--verify")) == 0
    return folder / "on"


@pytest.fixture(scope="module")
def without_agent(folder: Path, with_agent: Path) -> Path:
    profile = str(with_agent / "profile.json")
    assert main(arguments(folder, "off", "--slow", "fast@40:3", "--agent", "off", "--profile", profile)) == 0
    return folder / "off"


def test_the_agent_changes_no_bit_of_the_losses(with_agent: Path, without_agent: Path) -> None:
    assert len(losses(with_agent)) == STEPS
    assert losses(with_agent) == losses(without_agent)


def test_the_agent_makes_the_run_shorter(with_agent: Path, without_agent: Path) -> None:
    on = json.loads((with_agent / "summary.json").read_text())
    off = json.loads((without_agent / "summary.json").read_text())
    assert on["step_time_after_first_s"] < on["step_time_start_s"]
    assert on["runtime_s"] < off["runtime_s"]
    assert on["moves"] >= 1
    assert off["moves"] == 0
    assert on["ops_moved_share"] > 0
    assert on["bytes_moved"] > 0


def test_the_run_folder_holds_everything(with_agent: Path) -> None:
    summary = json.loads((with_agent / "summary.json").read_text())
    assert summary["device_kind"] == "emulated"
    assert summary["steps"] == STEPS
    assert summary["step_time_end_s"] > 0
    assert summary["ops_total"] == len(json.loads((with_agent / "graph.json").read_text())["names"])
    assert summary["loss_last"] < summary["loss_first"]
    for name in ("report.html", "step_time.png", "placement-start.json", "placement-end.json", "topology.yaml"):
        assert (with_agent / name).stat().st_size > 0
    for name in ("trace-start.json", "trace-end.json"):
        processes = {e["args"]["name"] for e in _events(with_agent / name) if e["name"] == "process_name"}
        kinds = {re.sub(r", \d+% of the transfer time hidden", "", name) for name in processes}
        assert kinds == {"predicted (simulated)", "run (emulated)"} != processes


def _events(path: Path) -> list[dict]:
    return json.loads(path.read_text())["traceEvents"]


def test_every_move_says_which_ops_and_why_and_pays(with_agent: Path) -> None:
    decisions = [json.loads(line) for line in (with_agent / "decisions.jsonl").read_text().splitlines()]
    moves = [decision for decision in decisions if decision["action"] == "move"]
    assert moves
    for move in moves:
        assert move["why"]
        assert len(move["moves"]) == move["ops_moved"] > 0
        assert move["predicted_gain_s"] > move["predicted_cost_s"]
        assert all(source != target for source, target in move["moves"].values())


def answer_yes(run: Path, ended: threading.Event) -> None:
    """Approve of whatever a run proposes."""
    while not ended.wait(0.05):
        proposal = read_proposal(run)
        if proposal is not None:
            answer_file(run, proposal["step"]).write_text("yes\n")


def test_nothing_moves_before_somebody_has_approved_of_it(
    folder: Path, with_agent: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, ended = folder / "asked", threading.Event()
    person = threading.Thread(target=answer_yes, args=(run, ended))
    person.start()
    try:
        profile = str(with_agent / "profile.json")
        assert main(arguments(folder, "asked", "--slow", "none", "--approve", "--profile", profile)) == 0
    finally:
        ended.set()
        person.join()
    decisions = [json.loads(line) for line in (run / "decisions.jsonl").read_text().splitlines()]
    decisions = [decision for decision in decisions if decision["action"] != "warn"]
    moves = [number for number, decision in enumerate(decisions) if decision["action"] == "move"]
    assert moves
    for number in moves:
        before, move = decisions[number - 1], decisions[number]
        assert before["action"] == "propose"
        assert before["moves"] == move["moves"]
        assert before["step"] <= move["step"]
        assert move["why"].startswith(f"approved, as proposed before step {before['step']}; predicted ")
    assert not (run / PROPOSAL).exists()
    assert f"before step {decisions[moves[0] - 1]['step']} the agent would move" in capfd.readouterr().err
    assert len(losses(run)) == STEPS
