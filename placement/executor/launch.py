"""Starts one worker process for each device of this machine, through torch elastic."""

import logging
import os
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, PContext, Std, start_processes

from ..errors import SegueError
from ..topology import Topology

TIMEOUT_S = 120.0
"""A worker that hears nothing from another for so long gives up."""


_ELASTIC_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class WorkerFailed(RuntimeError):
    """A worker ended before its work did; the message says which and how."""


def join(num_workers: int | None = None) -> None:
    """Join the group of workers that `launch` or torchrun has started."""
    store = os.environ.get("SEGUE_STORE")
    rank = int(os.environ["RANK"])
    world = num_workers or int(os.environ["WORLD_SIZE"])
    method = f"file://{store}" if store else "env://"
    dist.init_process_group("gloo", method, rank=rank, world_size=world, timeout=timedelta(seconds=TIMEOUT_S))


def launch(
    function: Callable[..., Any],
    topology: Topology,
    *args: Any,
    timeout_s: float | None = None,
    poll: Callable[[], None] | None = None,
) -> list[Any]:
    """Run `function(*args)` in one process for each device, joined into one group.

    Args:
        function: importable by name; called on every worker after `join`.
        topology: one worker for each of its devices.
        *args: picklable arguments.
        timeout_s: stop everything after so long.
        poll: called a few times a second while the workers run; an exception that it raises stops them.

    Returns:
        What each worker's call returned.

    Raises:
        SegueError: if a worker raised one.
        WorkerFailed: if a worker failed, was killed, or the time was up; no process is left running.
    """
    count = topology.num_devices
    # What failed is told by the exception, in one line where that is enough.
    for name in ("torch.distributed.elastic", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="segue-") as folder:
        store = str(Path(folder) / "store")
        environment = {
            rank: {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(count),
                "SEGUE_STORE": store,
                "GLOO_SOCKET_IFNAME": "lo",
                "OMP_NUM_THREADS": "1",
            }
            for rank in range(count)
        }
        handlers = {number: signal.getsignal(number) for number in _ELASTIC_SIGNALS}
        context = start_processes(
            "segue",
            _work,
            {rank: (function, folder, os.getpid(), args) for rank in range(count)},
            environment,
            DefaultLogsSpecs(log_dir=folder, redirects=Std.NONE),
            start_method="spawn",
        )
        # Elastic puts handlers of its own in their place; what Ctrl-C means is the caller's to say.
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)
        try:
            return _wait(context, folder, topology, timeout_s, poll)
        finally:
            context.close(signal.SIGKILL)


def _wait(
    context: PContext, folder: str, topology: Topology, timeout_s: float | None, poll: Callable[[], None] | None
) -> list[Any]:
    start = time.monotonic()
    while True:
        result = context.wait(timeout=0.2)
        if result is not None and not result.is_failed():
            return [result.return_values[rank] for rank in range(topology.num_devices)]
        if result is not None:
            raise _failure(result.failures, folder, topology)
        if timeout_s is not None and time.monotonic() - start > timeout_s:
            raise WorkerFailed(f"the workers did not end within {timeout_s:g} s")
        if poll is not None:
            poll()


def _failure(failures: dict[int, Any], folder: str, topology: Topology) -> Exception:
    """The error to report: a user's error first, then the worker that was killed, then the first to fail."""
    for rank in range(topology.num_devices):
        note = Path(folder) / f"user-error-{rank}"
        if note.exists():
            return SegueError(note.read_text())
    killed = {rank: f for rank, f in failures.items() if f.exitcode < 0}
    rank, failure = min((killed or failures).items(), key=lambda item: item[1].timestamp)
    name = topology.devices[rank].name
    if failure.exitcode < 0:
        return WorkerFailed(f"worker {rank} ({name}) was killed by {signal.Signals(-failure.exitcode).name}")
    notes = sorted(Path(folder).glob("error-*"), key=lambda path: path.stat().st_mtime)
    text = notes[0].read_text() if notes else f"exit code {failure.exitcode}"
    first = int(notes[0].name.removeprefix("error-")) if notes else rank
    return WorkerFailed(f"worker {first} ({topology.devices[first].name}) failed:\n{text}")


def _work(function: Callable[..., Any], folder: str, parent: int, args: tuple[Any, ...]) -> Any:
    """A worker's life: join, work, leave."""
    # Ctrl-C reaches every process of the terminal; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with(parent)
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    try:
        join()
        result = function(*args)
        dist.destroy_process_group()
        return result
    except SegueError as error:
        (Path(folder) / f"user-error-{rank}").write_text(str(error))
        raise SystemExit(2) from None
    except Exception:
        (Path(folder) / f"error-{rank}").write_text(traceback.format_exc())
        raise SystemExit(1) from None


def _die_with(parent: int) -> None:
    """Ask Linux to end this process when its parent ends, however that happens."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:
        os._exit(1)
