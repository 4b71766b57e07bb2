"""Starts one worker process for each device of this machine, through torch elastic."""

import atexit
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std, start_processes
from torch.distributed.elastic.multiprocessing.api import MultiprocessContext

from ..errors import SegueError
from ..topology import Topology
from .failures import Guard, WorkerFailed, noting_failures
from .forked import Output, end_with_launcher, start_server
from .script import run_script

TIMEOUT_S = 120.0
"""A worker that hears nothing from another for so long gives up."""
POLL_S = 0.1
_RESTART = "restart"


def join(num_workers: int | None = None, timeout_s: float | None = None) -> None:
    """Join the group of workers that `launch`, `segue launch` or torchrun has started.

    Args:
        num_workers: how many there are; by default what the environment says.
        timeout_s: a worker that waits so long for a message of another gives up; by default what the launcher was told,
            else `TIMEOUT_S`.
    """
    store = os.environ.get("SEGUE_STORE")
    rank = int(os.environ["RANK"])
    world = num_workers or int(os.environ["WORLD_SIZE"])
    timeout = timeout_s or float(os.environ.get("SEGUE_TIMEOUT_S", TIMEOUT_S))
    method = f"file://{store}" if store else "env://"
    dist.init_process_group("gloo", method, rank=rank, world_size=world, timeout=timedelta(seconds=timeout))
    atexit.register(_leave)


def _leave() -> None:
    """Leave the group at the end of a script; left to the interpreter, gloo's threads may abort the process."""
    if dist.is_initialized() and not hasattr(sys, "last_value"):
        dist.destroy_process_group()


def launch(
    function: Callable[..., Any],
    topology: Topology,
    *args: Any,
    timeout_s: float | None = None,
    message_timeout_s: float = TIMEOUT_S,
    poll: Callable[[], None] | None = None,
    end_when: Callable[[], bool] | None = None,
) -> list[Any]:
    """Run `function(*args)` in one process for each device, joined into one group.

    Args:
        function: importable by name; called on every worker after `join`.
        topology: one worker for each of its devices.
        *args: picklable arguments.
        timeout_s: stop everything after so long.
        message_timeout_s: a worker that waits so long for a message of another gives up.
        poll: called a few times a second while the workers run; an exception that it raises stops them.
        end_when: asked a few times a second; once it says so, the workers end at their next checkpoint (see `run_elastic`).

    Returns:
        What each worker's call returned.

    Raises:
        SegueError: if a worker raised one.
        WorkerFailed: if a worker failed, was killed, or the time was up; no process is left running.
    """
    with _folder(topology) as folder:
        ranks = range(topology.num_devices)
        workers = dict.fromkeys(ranks, (Output(), str(folder), function, args))
        logs = DefaultLogsSpecs(log_dir=str(folder), redirects=Std.NONE)
        start_server(["segue.placement.executor", function.__module__])
        with _started(_work, workers, logs, topology, folder, message_timeout_s) as guard:
            return _wait(guard, timeout_s, poll, end_when)


def launch_script(
    script: str,
    arguments: Sequence[str],
    topology: Topology,
    *,
    message_timeout_s: float = TIMEOUT_S,
    show_all: bool = False,
    end_when: Callable[[], bool] | None = None,
) -> None:
    """Run a user's script in one process for each device; `join` and `topology_of_run` in it find what they need.

    The processes are forked from one that has imported torch, and import the caller's main module: it needs its
    `if __name__ == "__main__":`.

    What worker 0 prints is shown; the others' output only with `show_all`, or its end where it says why a worker failed.

    Args:
        script: a Python file.
        arguments: its arguments.
        topology: one worker for each of its devices.
        message_timeout_s: a worker that waits so long for a message of another gives up.
        show_all: show every other worker's output too, with the device's name before each line.
        end_when: as for `launch`.

    Raises:
        SegueError: if there is no such script, the topology spans several hosts, or a worker raised one.
        WorkerFailed: if a worker failed or was killed; no process is left running.
    """
    if not Path(script).is_file():
        raise SegueError(f"script {script}: no such file")
    _on_one_host(topology)
    with _folder(topology) as folder:
        ranks = range(topology.num_devices)
        workers = dict.fromkeys(ranks, (Output(), str(folder), script, list(arguments)))
        others = {rank: Std.NONE if rank == 0 else Std.ALL for rank in ranks}
        logs = DefaultLogsSpecs(log_dir=str(folder), redirects=others, tee=others if show_all else Std.NONE)
        start_server(["segue.placement.executor"])
        with _started(run_script, workers, logs, topology, folder, message_timeout_s) as guard:
            _wait(guard, end_when=end_when)


def _on_one_host(topology: Topology) -> None:
    hosts = list(dict.fromkeys(device.host for device in topology.devices if device.kind != "emulated"))
    if len(hosts) > 1:
        raise SegueError(
            f"topology {topology.name}: its devices are on hosts {', '.join(hosts)}; start on each of them: torchrun "
            f"--nnodes {len(hosts)} --nproc-per-node DEVICES --rdzv-backend c10d --rdzv-endpoint {hosts[0]}:29500 SCRIPT"
        )


@contextmanager
def _folder(topology: Topology) -> Iterator[Path]:
    """Where the workers meet, leave notes, and find the topology."""
    with tempfile.TemporaryDirectory(prefix="segue-") as name:
        topology.save(Path(name) / "topology.json")
        yield Path(name)


@contextmanager
def _started(
    entrypoint: Callable[..., Any],
    arguments: dict[int, tuple[Any, ...]],
    logs: DefaultLogsSpecs,
    topology: Topology,
    folder: Path,
    message_timeout_s: float,
) -> Iterator[Guard]:
    """The running workers, forked from the server; none is left when the context ends."""
    # What failed is told by the exception, in one line where that is enough.
    for name in ("torch.distributed.elastic", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    count = topology.num_devices
    environment = {
        rank: {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "SEGUE_STORE": str(folder / "store"),
            "SEGUE_TOPOLOGY": str(folder / "topology.json"),
            "SEGUE_TIMEOUT_S": str(message_timeout_s),
            "SEGUE_RESTART": str(folder / _RESTART),
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        }
        for rank in range(count)
    }
    prefixes = {rank: f"[{device.name}]: " for rank, device in enumerate(topology.devices)}
    guards: list[Guard] = []

    def start() -> None:
        workers = start_processes(
            "segue", entrypoint, arguments, environment, logs, log_line_prefixes=prefixes, start_method="forkserver"
        )
        assert isinstance(workers, MultiprocessContext)
        guards.append(Guard(folder, topology, workers, message_timeout_s))

    # Not in the main thread: there elastic replaces the caller's handlers, and Ctrl-C would leave what has started by then.
    starter = ThreadPoolExecutor(1, thread_name_prefix="segue-start")
    try:
        # The pool would not know a thread during whose own start an interrupt comes.
        starter.submit(bool).result()
        starter.submit(start).result()
        yield guards[0]
    finally:
        starter.shutdown()
        for guard in guards:
            guard.kill()


def _wait(
    guard: Guard,
    timeout_s: float | None = None,
    poll: Callable[[], None] | None = None,
    end_when: Callable[[], bool] | None = None,
) -> list[Any]:
    """What the workers return; elastic would take half a minute to end one that hangs, so failures are seen before it."""
    start = time.monotonic()
    while True:
        failure = guard.failure()
        if failure is not None:
            raise failure
        result = guard.workers.wait(timeout=0)
        if result is not None and not result.is_failed():
            return [value for _, value in sorted(result.return_values.items())]
        if result is not None:
            raise guard.reason({rank: failed.exitcode for rank, failed in result.failures.items()})
        if guard.finished():
            return []
        if timeout_s is not None and time.monotonic() - start > timeout_s:
            raise WorkerFailed(f"the workers did not end within {timeout_s:g} s")
        if poll is not None:
            poll()
        if end_when is not None and end_when():
            (guard.folder / _RESTART).touch()
        time.sleep(POLL_S)


def _work(output: Output, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """A worker's life: join, work, leave."""
    del output
    # Ctrl-C reaches every process of the terminal; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_launcher()
    torch.set_num_threads(1)
    with noting_failures(Path(folder), int(os.environ["RANK"])):
        join()
        result = function(*args)
        dist.destroy_process_group()
        return result
