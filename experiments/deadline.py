"""`Deadline`: what a run can still do before the time that it has to end by."""

import re
import time
from collections import deque
from statistics import median_high

from ..placement.errors import SegueError

RESERVE_S = 5.0
"""Kept for the workers' end and the report."""
_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}


def parse_duration(text: str) -> float:
    """Seconds of `90`, `90s`, `45m`, `2h30m` or `1d`.

    Raises:
        SegueError: if it is none, or not more than nothing.
    """
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)([dhms])", text + "s" if text[-1:].isdigit() else text)
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    whole = "".join(number + unit for number, unit in parts)
    if whole not in (text, text + "s") or not seconds > 0:
        raise SegueError(f"--deadline {text!r}: expected a time of more than 0 s such as 90s, 45m or 2h30m")
    return seconds


class Deadline:
    """The time that a run has left, in steps as long as its last ones.

    Args:
        ends_at: when everything has to be saved, a reading of `time.time`; infinity for no such time.
    """

    def __init__(self, ends_at: float):
        self.ends_at = ends_at
        self._recent: deque[float] = deque(maxlen=8)
        self._save_s = 0.0
        self._warned = False
        self.begin()

    def begin(self) -> None:
        """The next step begins."""
        self._last = time.time()

    def step_done(self) -> None:
        """Another step has ended, and what belongs to it: a move, files."""
        now = time.time()
        self._recent.append(now - self._last)
        self._last = now

    def saved(self, seconds: float) -> None:
        """A checkpoint took so long; it is no part of the next step."""
        self._save_s = max(self._save_s, seconds)
        self.begin()

    @property
    def left_s(self) -> float:
        """Seconds left for steps."""
        return self.ends_at - time.time() - RESERVE_S - 1.5 * self._save_s

    def steps_left(self, most: int) -> int:
        """Steps that there is time for, `most` if that is more."""
        if not self._recent or self.left_s >= most * self.pace_s:
            return most
        return max(0, int(self.left_s / self.pace_s))

    @property
    def pace_s(self) -> float:
        """Median seconds of the last steps."""
        return median_high(self._recent)

    @property
    def is_up(self) -> bool:
        """Whether a step as long as the longest of the last ones would be too long."""
        return self.left_s < max(self._recent, default=0.0)

    def warning(self, done: int, steps: int) -> str | None:
        """Says once that not all steps of the run will be done, after some have shown the pace."""
        if self._warned or len(self._recent) < 4 or self.steps_left(steps - done) == steps - done:
            return None
        self._warned = True
        last = done + self.steps_left(steps - done)
        return f"at {self.pace_s:.2f} s a step the deadline comes after step {last} of {steps}; it will be saved then"
