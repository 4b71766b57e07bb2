"""Going on by itself on the devices that are there: without one whose worker is lost, and with it when it is back."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..errors import SegueError
from ..topology import Device, Topology
from .failures import RESTART, WorkerFailed

RETRY_S = 60.0
"""After so long a lost device is tried again, after twice as long each time that it is lost once more."""

Result = TypeVar("Result")


class Restart(SystemExit):
    """Ends a worker that has saved its state, so that the launcher can start it again on other devices."""

    def __init__(self) -> None:
        super().__init__(RESTART)


def restart_asked() -> bool:
    """Whether the launcher wants the workers to end at a checkpoint."""
    return Path(os.environ.get("SEGUE_RESTART", "")).is_file()


def run_elastic(
    start: Callable[[Topology, Callable[[], bool]], Result],
    topology: Topology,
    say: Callable[[str], None],
    retry_s: float = RETRY_S,
) -> Result:
    """Run workers, and again on other devices whenever one is killed or hangs, or a lost device is back.

    Args:
        start: `start(topology, end_when)` runs one worker for each device to its end, as `launch` does; once `end_when()`
            is true, they are to end at their next checkpoint.
        topology: all devices.
        say: told what happened, a line each time.
        retry_s: seconds until a lost device is tried again.

    Returns:
        What `start` returned at last.

    Raises:
        WorkerFailed: if a worker failed by itself, or was lost on the last device.
        SegueError: if `retry_s` is not positive.
    """
    if not retry_s > 0:
        raise SegueError(f"--retry-after must be > 0 seconds, got {retry_s:g}")
    lost: dict[str, _Lost] = {}

    def missing() -> list[str]:
        return [name for name, device in lost.items() if device.missing]

    def one_is_back() -> bool:
        return any(lost[name].answers() for name in missing())

    while True:
        here = topology.without(missing())
        try:
            return start(here, one_is_back)
        except WorkerFailed as error:
            if error.exit_code == RESTART:
                for name in [name for name in missing() if lost[name].answers()]:
                    lost[name].missing = False
                    say(f"{name} is back")
            elif error.gone and error.worker is not None and here.num_devices > 1:
                device = here.devices[error.worker]
                lost.setdefault(device.name, _Lost(device, retry_s)).lose()
                say(str(error))
            else:
                raise
        names = ", ".join(device.name for device in topology.without(missing()).devices)
        say(f"starting again on {names}")


class _Lost:
    """A device that was lost, and whether it answers again."""

    def __init__(self, device: Device, retry_s: float):
        self.device = device
        self.missing = False
        self._wait_s = retry_s
        self._from = 0.0
        self._trial: subprocess.Popen | None = None

    def lose(self) -> None:
        """It is gone; the next time it is waited for longer."""
        self.missing = True
        self._from = time.monotonic() + self._wait_s
        self._wait_s *= 2
        self._trial = None

    def answers(self) -> bool:
        """Whether it can be used again; a GPU is tried in a process of its own, which is not waited for."""
        if time.monotonic() < self._from:
            return False
        if self.device.kind != "cuda":
            return True
        if self._trial is None:
            code = f"import torch; torch.ones(1, device='cuda:{self.device.index}').item()"
            self._trial = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        code = self._trial.poll()
        if code:
            self._trial, self._from = None, time.monotonic() + self._wait_s
        return code == 0
