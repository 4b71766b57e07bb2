"""The main job from the command line, on a small model: real processes, real training, emulated devices."""

import csv
import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from segue.experiments.cli import main
from segue.placement.executor.checkpoint_files import find
from tests.processes import workers_of

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


@contextmanager
def on_its_way(run: Path, act: Callable[[], None]) -> Iterator[None]:
    """Do something to a run of this process that has made a few steps."""
    ended = threading.Event()

    def wait() -> None:
        while not ended.wait(0.05):
            if (run / "losses.csv").exists() and len(losses(run)) >= 4:
                act()
                return

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def undisturbed(folder: Path, run: str, *more: str) -> list[str]:
    """Options of a run whose step times nobody looks at: on devices five times as fast."""
    (folder / "quick.yaml").write_text(TOPOLOGY.replace("0.05,", "0.25,").replace("0.2,", "1.0,"))
    return arguments(folder, run, "--agent", "off", "--slow", "none", "--topology", str(folder / "quick.yaml"), *more)


def test_ctrl_c_saves_everything_and_the_run_goes_on_where_it_stopped(
    folder: Path, without_agent: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = folder / "interrupted"
    with on_its_way(run, lambda: os.kill(os.getpid(), signal.SIGINT)):
        assert main(undisturbed(folder, "interrupted")) == 130
    assert f"segue run --resume {run}" in capfd.readouterr().err
    done = len(losses(run))
    assert 4 <= done < STEPS
    assert find(run / "checkpoints")[1]["step"] == done
    assert json.loads((run / "summary.json").read_text())["steps"] == done
    assert main(["run", "--resume", str(run)]) == 0
    assert losses(run) == losses(without_agent)


def kill_the_last_worker() -> None:
    os.kill(workers_of(os.getpid())[-1], signal.SIGKILL)


def test_a_killed_worker_ends_the_run_with_a_way_to_resume(
    folder: Path, without_agent: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = folder / "killed"
    with on_its_way(run, kill_the_last_worker):
        assert main(undisturbed(folder, "killed")) == 1
    assert workers_of(os.getpid()) == []
    error = capfd.readouterr().err
    assert "was killed by SIGKILL" in error
    assert f"segue run --resume {run}" in error
    assert main(["run", "--resume", str(run)]) == 0
    assert losses(run) == losses(without_agent)


def test_an_elastic_run_goes_on_without_a_lost_worker_and_takes_it_in_again(
    folder: Path, without_agent: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = folder / "elastic"
    options = ("--elastic", "--retry-after", "3", "--checkpoint-every", "3")
    with on_its_way(run, kill_the_last_worker):
        assert main(undisturbed(folder, "elastic", *options)) == 0
    said = [line.removeprefix("segue: ") for line in capfd.readouterr().err.splitlines() if line.startswith("segue: ")]
    (lost,) = [place for place, line in enumerate(said) if "worker 1 (fast) was killed by SIGKILL" in line]
    assert said[lost + 1] == "starting again on slow"
    (back,) = [place for place, line in enumerate(said) if line == "fast is back"]
    assert said[back + 1] == "starting again on slow, fast"
    moves = [d for line in (run / "decisions.jsonl").read_text().splitlines() if (d := json.loads(line))]
    assert [d["why"] for d in moves if d["why"].startswith("the devices are now")] == [
        "the devices are now slow, not slow, fast",
        "the devices are now slow, fast, not slow",
    ]
    assert losses(run) == losses(without_agent)


def test_a_placement_of_another_graph_is_refused(
    folder: Path, with_agent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    placement = str(with_agent / "placement-end.json")
    assert main(arguments(folder, "other", "--model", "mlp", "--start", placement)) == 2
    assert "made for graph" in capsys.readouterr().err
    assert not (folder / "other").exists()


def test_a_model_that_fits_no_device_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "tiny.yaml").write_text(TOPOLOGY.replace("1.0e9", "1.0e5"))
    assert main(arguments(folder, "big", "--topology", str(folder / "tiny.yaml"))) == 2
    error = capsys.readouterr().err
    assert "device" in error
    assert "MiB" in error
    assert not (folder / "big").exists()
