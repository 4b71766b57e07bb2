"""A worker of `launch_script`: runs the user's script, and ends, as `python` would."""

import atexit
import ctypes
import io
import multiprocessing
import os
import runpy
import signal
import sys
import threading
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch.distributed as dist

from .failures import noting_failures
from .forked import Output, end_with_launcher


def run_script(output: Output, folder: str, script: str, arguments: list[str]) -> NoReturn:
    """Run a script; does not return.

    Args:
        output: the launching process's.
        folder: where notes for the launching process go.
        script: the user's file.
        arguments: its arguments.
    """
    del output
    # Ctrl-C reaches every process of the terminal's session; the launching process decides what it means.
    os.setsid()
    end_with_launcher()
    _look_fresh(script, arguments)
    try:
        with noting_failures(Path(folder), int(os.environ["RANK"]), script):
            runpy.run_path(script, run_name="__main__")
            if dist.is_initialized():
                dist.destroy_process_group()
        _end(0)
    except SystemExit as error:
        if isinstance(error.code, int | None):
            _end(error.code or 0)
        print(error.code, file=sys.stderr)
        _end(1)
    except KeyboardInterrupt:
        _end(128 + signal.SIGINT)


def _look_fresh(script: str, arguments: list[str]) -> None:
    """Make this process look like a Python that has just been started, with `-u`."""
    multiprocessing.current_process().name = "MainProcess"
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).resolve().parent)
    for name, number in (("stdout", 1), ("stderr", 2)):
        raw = open(number, "wb", buffering=0, closefd=False)  # noqa: SIM115
        before = getattr(sys, name)
        setattr(sys, name, io.TextIOWrapper(raw, before.encoding, before.errors, write_through=True))
    # Python's own generator is seeded anew by a fork.
    np.random.seed()  # noqa: NPY002


def _end(code: int) -> NoReturn:
    """What an interpreter does at its end, which a forked process leaves out."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)
    os._exit(code)
