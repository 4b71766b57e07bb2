"""Runs of the main job that are interrupted, or refused: what is left behind, and how they go on."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from segue.experiments.cli import main
from segue.placement.executor.checkpoint_files import find
from tests.experiments.test_run import STEPS, TOPOLOGY, arguments, losses
from tests.processes import workers_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    # Devices five times as fast: nobody looks at these runs' step times.
    (folder / "topology.yaml").write_text(TOPOLOGY.replace("0.05,", "0.25,").replace("0.2,", "1.0,"))
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[str]:
    """Losses of a run that nothing happens to."""
    assert main(undisturbed(folder, "expected")) == 0
    return losses(folder / "expected")


def undisturbed(folder: Path, run: str, *more: str) -> list[str]:
    return arguments(folder, run, "--agent", "off", "--slow", "none", *more)


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


def test_ctrl_c_saves_everything_and_the_run_goes_on_where_it_stopped(
    folder: Path, expected: list[str], capfd: pytest.CaptureFixture[str]
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
    assert losses(run) == expected


def test_a_deadline_saves_everything_and_the_run_goes_on_where_it_stopped(
    folder: Path, expected: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    run = folder / "late"
    assert main(undisturbed(folder, "late", "--deadline", "12s", "--steps", "20000")) == 124
    done = len(losses(run))
    error = capfd.readouterr().err
    assert f"segue: stopped by its deadline after step {done} of 20000" in error
    assert f"segue run --resume {run}" in error
    assert find(run / "checkpoints")[1]["step"] == done
    assert json.loads((run / "summary.json").read_text())["steps"] == done
    both = min(done, STEPS)
    assert losses(run)[:both] == expected[:both]
    assert main(["run", "--resume", str(run), "--deadline", "8s"]) == 124
    assert len(losses(run)) > done


def kill_the_last_worker() -> None:
    os.kill(workers_of(os.getpid())[-1], signal.SIGKILL)


def test_a_killed_worker_ends_the_run_with_a_way_to_resume(
    folder: Path, expected: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    run = folder / "killed"
    with on_its_way(run, kill_the_last_worker):
        assert main(undisturbed(folder, "killed")) == 1
    assert workers_of(os.getpid()) == []
    error = capfd.readouterr().err
    assert "was killed by SIGKILL" in error
    assert f"segue run --resume {run}" in error
    assert main(["run", "--resume", str(run)]) == 0
    assert losses(run) == expected


def test_an_elastic_run_goes_on_without_a_lost_worker_and_takes_it_in_again(
    folder: Path, expected: list[str], capfd: pytest.CaptureFixture[str]
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
    assert losses(run) == expected


def test_a_placement_of_another_graph_is_refused(
    folder: Path, expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    placement = str(folder / "expected" / "placement-end.json")
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
