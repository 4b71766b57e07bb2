import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from segue.experiments.cli import main
from segue.experiments.run_config import parse_steps
from segue.experiments.run_files import RunFiles, read_decisions
from segue.experiments.tensorboard import FOLDER, Board, check_tensorboard
from segue.experiments.trace import read_traces
from segue.experiments.watching import Watching
from segue.placement.clock import StepReport
from segue.placement.errors import SegueError
from segue.placement.placement import Placement
from tests.placement.test_watch import a_clock

MIB = 2.0**20
TOPOLOGY = """
format: segue.topology/1
devices:
  - {name: near, kind: emulated, memory_bytes: 1.0e9, speed: 0.2, overhead_s: 0.001}
  - {name: far, kind: emulated, memory_bytes: 1.0e9, speed: 0.2, overhead_s: 0.001}
default_link: {latency_s: 0.05, bandwidth_bytes_per_s: 1.0e+7}
"""


@pytest.mark.parametrize(
    ("text", "steps"), [("3", (3,)), ("3,10-12", (3, 10, 11, 12)), ("5-5,0", (0, 5)), ("7,7", (7,))]
)
def test_steps_are_a_comma_list_with_ranges(text: str, steps: tuple[int, ...]) -> None:
    assert parse_steps(text, 20) == steps


@pytest.mark.parametrize("text", ["a", "1-b", "1,,2", "20", "-1", "5-3", "1.5", ""])
def test_steps_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(SegueError, match=r"^--trace"):
        parse_steps(text, 20)


def a_report(shares: list[float]) -> StepReport:
    peak = np.array(shares) * 100 * MIB
    return StepReport(1.0, np.array([0.5, 0.2]), np.array([0.1, 0.0]), peak, np.full(2, 100 * MIB), "emulated")


def test_a_warning_is_said_once_and_written_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = RunFiles(tmp_path)
    executor = SimpleNamespace(clock=a_clock, placement=Placement(np.array([0, 0, 1, 1]), 2))
    watching = Watching(executor, files, None)  # type: ignore[arg-type]
    for step, shares in enumerate([[0.5, 0.5], [0.5, 0.93], [0.5, 0.95], [0.91, 0.93], [0.5, 0.5]]):
        watching.step(step, 1.0, a_report(shares))
    watching.close()
    files.close()
    rows = read_decisions(tmp_path)
    assert [(row["step"], row["action"], row["source"]) for row in rows] == [
        (1, "warn", "emulated"),
        (3, "warn", "emulated"),
    ]
    assert rows[0]["why"].startswith("memory of d1 nearly full: 93.0 MiB of 100.0 MiB")
    lines = capsys.readouterr().err.splitlines()
    assert [line[: len("segue: step 1: memory of d1")] for line in lines] == [
        "segue: step 1: memory of d1",
        "segue: step 3: memory of d0",
    ]


def test_curves_without_tensorboard_name_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SegueError, match=r"pip install 'segue\[tensorboard\]'"):
        check_tensorboard()
    assert main(["run", "--tensorboard"]) == 2
    assert "segue[tensorboard]" in capsys.readouterr().err


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = loader.EventAccumulator(str(folder / FOLDER))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_curves_have_every_device_and_go_on_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    first = Board(tmp_path, ["d0", "d1"])
    for step in range(3):
        first.step(step, 2.0, a_report([0.5, 0.25]))
    first.close()
    again = Board(tmp_path, ["d0", "d1"], first_step=2)
    again.step(2, 1.0, a_report([0.5, 0.25]))
    again.close()
    found = scalars(tmp_path)
    assert set(found) == {
        "loss",
        "step_time_s",
        *(f"{name}/{d}" for name in ("busy_s", "waiting_s", "transfer_s", "memory_share") for d in ("d0", "d1")),
    }
    assert found["loss"] == [(0, 2.0), (1, 2.0), (2, 1.0)]
    assert [value for _, value in found["waiting_s/d1"]] == pytest.approx([0.8, 0.8, 0.8])
    assert [value for _, value in found["memory_share/d0"]] == pytest.approx([0.5, 0.5, 0.5])


@pytest.mark.slow
@pytest.mark.quiet
@pytest.mark.timeout(200)
def test_a_run_says_which_link_is_waited_for_and_writes_the_traces_asked_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "topology.yaml").write_text(TOPOLOGY)
    run = tmp_path / "run"
    try:
        check_tensorboard()
        curves = ["--tensorboard"]
    except SegueError:
        curves = []
    options = ["--model", "resnet", "--image-size", "8", "--batch-size", "8", "--microbatches", "2", "--steps", "8"]
    options += ["--agent", "off", "--slow", "none", "--trace", "1,4-5", "--topology", str(tmp_path / "topology.yaml")]
    assert main(["run", "--run-dir", str(run), *options, *curves]) == 0
    traces = sorted(path.name for path in run.glob("trace-step-*.json"))
    assert traces == ["trace-step-00001.json", "trace-step-00004.json", "trace-step-00005.json"]
    for name in traces:
        timelines = read_traces(run / name)
        (bars,) = (bars for title, bars in timelines.items() if title.startswith("run (emulated, "))
        assert {bar.lane for bar in bars} == {"near", "far"}
    warnings = [row["why"] for row in read_decisions(run) if row["action"] == "warn"]
    assert any(why.startswith("link near->far is a bottleneck: far waits for it") for why in warnings)
    assert json.loads((run / "summary.json").read_text())["warnings"] == warnings
    error = capfd.readouterr().err
    assert [error.count(why) for why in warnings] == [1] * len(warnings)
    if curves:
        assert [step for step, _ in scalars(run)["memory_share/far"]] == list(range(8))
