"""Faults that the workers of the fault tests bring about themselves; importable by name in a new process."""

import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch.distributed as dist

from segue.placement.executor import Executor
from segue.placement.executor.checkpoint import CheckpointFailed, load_checkpoint, save_checkpoint
from segue.placement.topology import Topology

from . import jobs

FAULT_STEP = 2
"""Before this step the fault happens."""


def start(topology: Topology) -> Executor:
    """A run whose ops are spread over the workers, so that each waits for the others."""
    executor = jobs.make_executor("branches", topology)
    executor.apply(jobs.random_placement(executor, np.random.default_rng(0)))
    return executor


def train(executor: Executor, folder: Path, first: int, last: int) -> None:
    """Steps `first` to `last - 1`; every worker writes each loss down as soon as it knows it."""
    with (folder / f"losses-{executor.rank}").open("a") as file:
        for step in range(first, last):
            file.write(f"{executor.step(jobs.batch_of('branches', step))!r}\n")
            file.flush()


def losses(folder: Path) -> list[list[float]]:
    """What the workers have written down."""
    return [[float(line) for line in path.read_text().splitlines()] for path in sorted(folder.glob("losses-*"))]


def without_fault(topology: Topology, folder: Path) -> None:
    train(start(topology), folder, 0, jobs.STEPS)


def stop_by_signal(topology: Topology, folder: Path, number: signal.Signals) -> None:
    """Worker 1 is stopped or killed while the others wait for it."""
    executor = start(topology)
    train(executor, folder, 0, FAULT_STEP)
    if executor.rank == 1:
        os.kill(os.getpid(), number)
    train(executor, folder, FAULT_STEP, 1000)


def sleep_on_the_way(topology: Topology, folder: Path) -> None:
    """Worker 1 does something else for ever."""
    executor = start(topology)
    train(executor, folder, 0, FAULT_STEP)
    if executor.rank == 1:
        time.sleep(600)
    train(executor, folder, FAULT_STEP, 1000)


def run_out_of_memory(topology: Topology, folder: Path) -> None:
    """Worker 1's memory shrinks to what its parameters take, so that the next step's activations overflow it."""
    executor = start(topology)
    train(executor, folder, 0, FAULT_STEP)
    if executor.rank == 1:
        executor._runner.capacity_bytes = float(executor._state.nbytes())
    train(executor, folder, FAULT_STEP, 1000)


def fill_the_disk(topology: Topology, folder: Path, disk: Path | None) -> dict[str, object]:
    """The second checkpoint meets a full disk; the run goes on, and a second one from the first checkpoint."""
    executor = start(topology)
    root = (disk or folder) / "checkpoints"
    train(executor, folder, 0, FAULT_STEP)
    first = save_checkpoint(executor, root, {"step": FAULT_STEP})
    files = {path: path.read_bytes() for path in sorted(first.iterdir())}
    train(executor, folder, FAULT_STEP, FAULT_STEP + 1)
    message = ""
    with _full(executor.rank, disk):
        try:
            save_checkpoint(executor, root, {"step": FAULT_STEP + 1})
        except CheckpointFailed as error:
            message = str(error)
    whole = {path: path.read_bytes() for path in sorted(first.iterdir())} == files
    train(executor, folder, FAULT_STEP + 1, jobs.STEPS)
    again = jobs.make_executor("branches", topology)
    loaded = load_checkpoint(again, root)
    losses = [again.step(jobs.batch_of("branches", step)) for step in range(loaded.step, jobs.STEPS)]
    saved = save_checkpoint(again, root)
    left = sorted(path.name for path in root.iterdir())
    return {"message": message, "whole": whole, "extra": loaded.extra, "losses": losses, "left": left, "saved": saved}


@contextmanager
def _full(rank: int, disk: Path | None) -> Iterator[None]:
    """No room on the disk; without one to fill, worker 1 may write only small files."""
    if disk is None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (512, before[1]))
        yield
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return
    ballast = disk / "ballast"
    if rank == 0:
        with ballast.open("wb", buffering=0) as file:
            try:
                while file.write(b"x" * 4096):
                    pass
            except OSError:  # no space left
                pass
    dist.barrier()
    yield
    dist.barrier()
    ballast.unlink(missing_ok=True)
    dist.barrier()
