"""Each example script, as a user runs it, beside the same loop in plain PyTorch."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
FOLDER = Path(__file__).parents[2] / "experiments" / "examples"
STEPS = 50
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=200, env=ENVIRONMENT, check=False
    )
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
def test_an_example_trains_and_moves_as_plain_pytorch_trains(name: str, topology: str) -> None:
    script = str(FOLDER / f"{name}.py")
    options = ["--steps", str(STEPS), "--seed", "1"]
    spread = run("-m", "segue.experiments", "launch", "--topology", topology, script, *options)
    plain = run(script, "--plain", *options)
    moved = re.search(r"^moved (\d+) ops \((\S+) MiB\)", spread, re.MULTILINE)
    assert moved
    assert int(moved[1]) > 0
    assert len(losses(plain)) == STEPS
    assert losses(plain)[-1] < losses(plain)[0]
    assert losses(spread) == pytest.approx(losses(plain), rel=1e-5)
    assert held_out(spread) == pytest.approx(held_out(plain), rel=1e-4)


def worker(launcher: int, rank: int) -> int:
    """The process of a worker."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    (pid,) = [int(c) for c in children if f"\0RANK={rank}\0".encode() in Path(f"/proc/{c}/environ").read_bytes()]
    return pid


def test_an_elastic_run_goes_on_without_a_killed_worker_and_its_losses_are_those_of_a_run_without_fault(
    tmp_path: Path,
) -> None:
    options = ["--steps", "40", "--seed", "1"]
    command = ["-m", "segue.experiments", "launch", "--topology", "emulated-2", "--elastic"]
    script = [str(FOLDER / "image_classifier.py"), *options, "--checkpoints", str(tmp_path / "saved")]
    process = subprocess.Popen(
        [sys.executable, *command, *script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    deadline = time.monotonic() + 100
    while not (tmp_path / "saved" / "latest").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(worker(process.pid, 1), signal.SIGKILL)
    output, error = process.communicate(timeout=150)
    assert process.returncode == 0, error
    assert "segue: worker 1 (dev1) was killed by SIGKILL" in error
    assert "starting again on dev0" in error
    steps = [(int(step), float(loss)) for step, loss in re.findall(r"^step (\d+): loss (\S+)$", output, re.MULTILINE)]
    plain = losses(run(str(FOLDER / "image_classifier.py"), "--plain", *options))
    assert dict(steps).keys() == set(range(40))
    for step, loss in steps:
        assert loss == pytest.approx(plain[step], rel=1e-5)
