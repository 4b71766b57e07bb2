"""`segue launch`: runs the user's own script on every device of a topology."""

import argparse
import signal
import sys
from collections.abc import Callable
from typing import Any

from ..placement.errors import SegueError
from ..placement.executor import WorkerFailed, launch_script, run_elastic
from ..placement.topology import Topology
from .run_config import find_topology


def launch_command(options: argparse.Namespace) -> int:
    """Run the script to its end; returns the exit code, of the worker that failed if one did.

    Raises:
        SegueError: for bad input, also where a worker finds it.
    """
    if not options.timeout > 0:
        raise SegueError(f"--timeout must be > 0 seconds, got {options.timeout:g}")
    topology = find_topology(options.topology)
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        _launch(options, topology)
    except WorkerFailed as error:
        print(f"segue: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _launch(options: argparse.Namespace, topology: Topology) -> None:
    def start(here: Topology, end_when: Callable[[], bool]) -> None:
        launch_script(
            options.script,
            options.arguments,
            here,
            message_timeout_s=options.timeout,
            show_all=options.show_all,
            end_when=end_when,
        )

    if options.elastic:
        run_elastic(start, topology, say, options.retry_after)
    else:
        start(topology, lambda: False)


def say(line: str) -> None:
    """Tell the user what happened to the workers."""
    print(f"segue: {line}", file=sys.stderr)


def _terminated(number: int, frame: Any) -> None:
    """End like after Ctrl-C: the workers first."""
    del frame
    raise SystemExit(128 + number)
