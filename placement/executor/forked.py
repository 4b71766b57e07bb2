"""What a worker forked from the server does before its work: take the launcher's output, and end when the launcher does."""

import ctypes
import multiprocessing
import os
import signal
import threading
from multiprocessing import forkserver
from multiprocessing.reduction import DupFd
from typing import Any


def start_server(modules: list[str]) -> None:
    """Start the server that workers are forked from, unless it runs.

    Args:
        modules: what it imports, once for all workers.
    """
    multiprocessing.set_forkserver_preload(modules)
    before = os.environ.get("OMP_NUM_THREADS")
    # Libraries look at it when they are loaded: in the server.
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


class Output:
    """The launching process's standard output and error, which become those of the worker that unpickles it.

    The server's own are those that the launching process had when the server was started.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _take_over, (DupFd(1), DupFd(2))


def _take_over(*given: Any) -> Output:
    for number, descriptor in enumerate((each.detach() for each in given), 1):
        os.dup2(descriptor, number)
        os.close(descriptor)
    return Output()


def end_with_launcher() -> None:
    """Let this process end when the launching process or the server does, however that happens."""
    _die_with(os.getppid())
    # The server does not see the launching process end while there are workers.
    launcher = multiprocessing.parent_process()
    assert launcher is not None
    threading.Thread(target=_follow, args=(launcher,), name="segue-follow", daemon=True).start()


def _follow(launcher: Any) -> None:
    launcher.join()
    os.kill(os.getpid(), signal.SIGKILL)


def _die_with(parent: int) -> None:
    """Ask Linux to end this process when its parent ends."""
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:
        os._exit(1)
