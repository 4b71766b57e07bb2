"""Faults brought about on purpose: every other worker stops soon, and the error says who and why."""

import multiprocessing
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from segue.placement.executor import WorkerFailed, launch
from segue.placement.topology import Topology
from tests.placement.executor import fault_jobs
from tests.placement.executor.test_executor import cpu_devices, emulated_devices

pytestmark = [pytest.mark.slow, pytest.mark.quiet, pytest.mark.timeout(400)]
LIMIT_S = 150.0
"""A run that is still there after so long did hang."""
MESSAGE_TIMEOUT_S = 10.0
THREE = cpu_devices(3)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of the run without a fault."""
    folder = tmp_path_factory.mktemp("without-fault")
    launch(fault_jobs.without_fault, THREE, THREE, folder, timeout_s=LIMIT_S)
    first, *others = fault_jobs.losses(folder)
    assert len(others) == 2
    assert all(other == first for other in others)
    return first


def fail(job: object, topology: Topology, folder: Path, *more: object) -> str:
    """The message of a run that fails; no process is left of it."""
    with pytest.raises(WorkerFailed) as caught:
        launch(job, topology, topology, folder, *more, timeout_s=LIMIT_S, message_timeout_s=MESSAGE_TIMEOUT_S)
    assert "did not end within" not in str(caught.value)
    assert not multiprocessing.active_children()
    return str(caught.value)


def check_losses(folder: Path, expected: list[float]) -> None:
    """Up to the fault, the losses are those of the run without one."""
    for losses in fault_jobs.losses(folder):
        assert losses == expected[: fault_jobs.FAULT_STEP]


def test_a_killed_worker_stops_the_others(tmp_path: Path, expected: list[float]) -> None:
    message = fail(fault_jobs.stop_by_signal, THREE, tmp_path, signal.SIGKILL)
    assert message == "worker 1 (cpu1) was killed by SIGKILL"
    check_losses(tmp_path, expected)


def test_a_worker_that_is_stopped_is_named_and_stops_the_others(tmp_path: Path, expected: list[float]) -> None:
    message = fail(fault_jobs.stop_by_signal, THREE, tmp_path, signal.SIGSTOP)
    assert message.startswith("worker 1 (cpu1) hangs (stopped by a signal)")
    assert f"waited {MESSAGE_TIMEOUT_S:g} s for a message" in message
    check_losses(tmp_path, expected)


def test_a_worker_that_hangs_is_named_with_the_line_it_hangs_at(tmp_path: Path, expected: list[float]) -> None:
    message = fail(fault_jobs.sleep_on_the_way, THREE, tmp_path)
    assert message.startswith("worker 1 (cpu1) hangs (")
    assert 'fault_jobs.py"' in message
    assert "in sleep_on_the_way" in message
    check_losses(tmp_path, expected)


def test_memory_that_runs_out_in_a_step_names_device_and_ops(tmp_path: Path, expected: list[float]) -> None:
    three = emulated_devices(3)
    message = fail(fault_jobs.run_out_of_memory, three, tmp_path)
    assert message.startswith("worker 1 (dev1) failed:")
    assert "OutOfMemory: dev1: " in message
    assert "MiB needed for microbatch 0 of ops " in message
    check_losses(tmp_path, expected)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "segue-test", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"this machine mounts no small file system: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def check_full_disk(folder: Path, disk: Path | None, expected: list[float]) -> str:
    """The run goes on and the checkpoint before is whole; returns what the failed one said."""
    results = launch(fault_jobs.fill_the_disk, THREE, THREE, folder, disk, timeout_s=LIMIT_S)
    for result in results:
        assert result["whole"]
        assert result["extra"] == {"step": fault_jobs.FAULT_STEP}
        assert result["losses"] == expected[fault_jobs.FAULT_STEP :]
        assert result["saved"].name in result["left"]
        assert not any(name.endswith(".tmp") for name in result["left"])
    assert all(losses == expected for losses in fault_jobs.losses(folder))
    (message,) = {result["message"] for result in results}
    return message


def test_a_full_disk_leaves_the_checkpoint_before_whole(
    tmp_path: Path, small_disk: Path, expected: list[float]
) -> None:
    assert "No space left on device" in check_full_disk(tmp_path, small_disk, expected)


def test_a_worker_that_may_not_write_leaves_the_checkpoint_before_whole(tmp_path: Path, expected: list[float]) -> None:
    message = check_full_disk(tmp_path, None, expected)
    assert "worker 1" in message
    assert "File too large" in message
