"""`segue launch`: the user's own script on every device."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segue.experiments.cli import main
from tests.processes import children, workers_of

pytestmark = pytest.mark.timeout(400)
LIMIT_S = 100.0

MEET = """
import os, sys, time
import torch, torch.distributed as dist
from segue.placement.errors import SegueError
from segue.placement.executor import join, topology_of_run
join()
rank = dist.get_rank()
"""
TRAIN = """
from torch import nn
from segue.placement.executor import Executor
topology = topology_of_run(*sys.argv[1:])
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
batch = torch.randn(6, 4), torch.randn(6, 2)
executor = Executor(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), loss_fn=nn.MSELoss(),
                    example_batch=batch, topology=topology)
losses = [executor.step(batch) for _ in range(3)]
if rank == 0:
    print([device.name for device in topology.devices], losses)
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> str:
        path = tmp_path / "script.py"
        path.write_text(MEET + text)
        return str(path)

    return write


def launch(script: str, *arguments: str, options: tuple[str, ...] = ()) -> int:
    return main(["launch", "--topology", "emulated-2", *options, script, *arguments])


def test_a_script_runs_on_every_device_with_its_own_arguments(write, capfd: pytest.CaptureFixture[str]) -> None:
    script = write("print('worker', rank, __name__, sys.argv[1:], len(topology_of_run().devices))\n")
    assert launch(script, "--steps", "3", "--topology", "x") == 0
    assert capfd.readouterr().out == "worker 0 __main__ ['--steps', '3', '--topology', 'x'] 2\n"


def test_what_the_other_workers_print_is_shown_when_asked_for(write, capfd: pytest.CaptureFixture[str]) -> None:
    script = write("print('worker', rank, flush=True)\ndist.barrier()\ntime.sleep(1)\n")
    assert launch(script, options=("--show-all",)) == 0
    assert sorted(capfd.readouterr().out.splitlines()) == ["[dev1]: worker 1", "worker 0"]


def test_a_failing_worker_ends_all_with_one_line_and_its_traceback(write, capfd: pytest.CaptureFixture[str]) -> None:
    script = write("if rank == 1:\n    raise ValueError('seven')\ndist.barrier()\ntime.sleep(600)\n")
    begin = time.monotonic()
    assert launch(script) == 1
    assert time.monotonic() - begin < LIMIT_S
    lines = capfd.readouterr().err.splitlines()
    # Gloo may say something of its own before.
    error = lines[lines.index("segue: worker 1 (dev1) failed:") :]
    assert error[1] == "Traceback (most recent call last):"
    assert error[2].strip().startswith(f'File "{script}", line ')
    assert error[-1] == "ValueError: seven"


def test_bad_input_that_a_worker_finds_is_told_in_one_line(write, capfd: pytest.CaptureFixture[str]) -> None:
    script = write("if rank == 1:\n    raise SegueError('batch: too large')\ndist.barrier()\n")
    assert launch(script) == 2
    assert capfd.readouterr().err == "segue: error: batch: too large\n"


def test_a_workers_exit_code_is_passed_on_with_its_last_words(write, capfd: pytest.CaptureFixture[str]) -> None:
    script = write("if rank == 1:\n    print('out of paper', file=sys.stderr)\n    sys.exit(9)\ndist.barrier()\n")
    assert launch(script) == 9
    assert capfd.readouterr().err == "segue: worker 1 (dev1) ended with exit code 9:\nout of paper\n"


def test_bad_options_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(str(tmp_path / "none.py")) == 2
    assert "no such file" in capsys.readouterr().err
    assert launch(str(tmp_path / "none.py"), options=("--timeout", "0")) == 2
    assert "--timeout must be > 0 seconds" in capsys.readouterr().err
    assert main(["launch", "--topology", "nowhere", str(tmp_path / "none.py")]) == 2
    assert "nowhere" in capsys.readouterr().err


INTERRUPTED = {
    signal.SIGINT: (130, "segue: interrupted\n"),
    signal.SIGTERM: (143, ""),
    # What the killed process had of semaphores is cleaned up after it, and that is told.
    signal.SIGKILL: (-9, None),
}


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_an_interrupted_launch_leaves_no_process(write, tmp_path: Path) -> None:
    script = write("dist.barrier()\nopen(sys.argv[1] + str(rank), 'w').close()\ntime.sleep(600)\n")
    command = [sys.executable, "-m", "segue.experiments", "launch", "--topology", "emulated-2", script]
    # All at the same time, since most of it is starting Python.
    processes = {
        number: subprocess.Popen([*command, str(tmp_path / f"{number.name}-")], stderr=subprocess.PIPE, text=True)
        for number in INTERRUPTED
    }
    try:
        for number, (code, message) in INTERRUPTED.items():
            process, deadline = processes[number], time.monotonic() + 2 * LIMIT_S
            while len(list(tmp_path.glob(f"{number.name}-*"))) < 2:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            workers = workers_of(process.pid)
            assert len(workers) == 2
            everyone = [*workers, *children(process.pid)]
            process.send_signal(number)
            _, error = process.communicate(timeout=LIMIT_S)
            assert process.returncode == code
            assert error == message or (message is None and "segue: " not in error)
            while any(Path(f"/proc/{pid}").exists() for pid in everyone):
                assert time.monotonic() < deadline
                time.sleep(0.1)
    finally:
        for process in processes.values():
            process.kill()


@pytest.mark.slow
def test_torchrun_and_segue_launch_run_the_same_script(
    write, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = write(TRAIN)
    (tmp_path / "pair.yaml").write_text(
        "format: segue.topology/1\n"
        "devices: [{name: a, kind: cpu, memory_bytes: 1.0e9}, {name: b, kind: cpu, memory_bytes: 1.0e9}]\n"
        "default_link: {latency_s: 1.0e-4, bandwidth_bytes_per_s: 1.0e9}\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # All at the same time, since most of it is starting Python.
    started = {
        names: subprocess.Popen(
            [*torchrun, "--nproc-per-node", str(workers), script, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for workers, arguments, names in ((2, [str(tmp_path / "pair.yaml")], "['a', 'b'"), (1, [], "['"))
    }
    assert launch(script) == 0
    devices, losses = capfd.readouterr().out.split("] [")
    assert devices == "['dev0', 'dev1'"
    for names, process in started.items():
        output, error = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, error
        found, others = output.split("] [")
        assert found.startswith(names)
        assert others == losses
