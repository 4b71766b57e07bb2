"""Each example script, as `segue launch` runs it, beside the same loop in plain PyTorch."""

import functools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from segue.experiments.cli import main
from tests.processes import workers_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]
FOLDER = Path(__file__).parents[2] / "experiments" / "examples"
STEPS = 24
OPTIONS = ("--steps", str(STEPS), "--seed", "1")


@functools.cache
def plain(name: str) -> str:
    """What an example prints as `python` runs it, without segue."""
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--plain", *OPTIONS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(output: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"^step \d+: loss (\S+)$", output, re.MULTILINE)]


def held_out(output: str) -> float:
    (loss,) = re.findall(r"^held out: loss (\S+)$", output, re.MULTILINE)
    return float(loss)


@pytest.mark.parametrize(
    ("name", "topology"),
    [("image_classifier", "emulated-2"), ("language_model", "emulated-4-equal"), ("unet", "emulated-2")],
)
def test_an_example_trains_and_moves_as_plain_pytorch_trains(
    name: str, topology: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", "--topology", topology, str(FOLDER / f"{name}.py"), *OPTIONS]) == 0
    spread = capfd.readouterr().out
    moved = re.search(r"^moved (\d+) ops \((\S+) MiB\)", spread, re.MULTILINE)
    assert moved
    assert int(moved[1]) > 0
    assert len(losses(plain(name))) == STEPS
    assert losses(plain(name))[-1] < losses(plain(name))[0]
    assert losses(spread) == pytest.approx(losses(plain(name)), rel=1e-5)
    assert held_out(spread) == pytest.approx(held_out(plain(name)), rel=1e-4)


def test_an_elastic_run_goes_on_without_a_killed_worker_and_its_losses_are_those_of_a_run_without_fault(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "saved"

    def kill_one() -> None:
        deadline = time.monotonic() + 100
        while not (saved / "latest").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(workers_of(os.getpid())[1], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    command = ["launch", "--topology", "emulated-2", "--elastic", str(FOLDER / "image_classifier.py"), *OPTIONS]
    assert main([*command, "--checkpoints", str(saved)]) == 0
    killer.join()
    output, error = capfd.readouterr()
    assert "segue: worker 1 (dev1) was killed by SIGKILL" in error
    assert "starting again on dev0" in error
    steps = [(int(step), float(loss)) for step, loss in re.findall(r"^step (\d+): loss (\S+)$", output, re.MULTILINE)]
    expected = losses(plain("image_classifier"))
    assert dict(steps).keys() == set(range(STEPS))
    for step, loss in steps:
        assert loss == pytest.approx(expected[step], rel=1e-5)
