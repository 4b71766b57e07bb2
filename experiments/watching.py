"""`Watching`: what is said of a run while it goes on, on worker 0."""

import sys

from tqdm import tqdm

from ..agent.controller import Decision
from ..placement.clock import StepReport
from ..placement.executor import Executor
from ..placement.watch import memory_pressure, nearly_full, watch
from .run_files import RunFiles
from .tensorboard import Board


class Watching:
    """Says once of every device that is (nearly) full and of every link that is waited for; draws curves if asked to.

    A warning is a line on stderr and a row of `decisions.jsonl` with the action `warn`.

    Args:
        executor: the run.
        files: its folder's files.
        board: curves, if they are wanted.
    """

    def __init__(self, executor: Executor, files: RunFiles, board: Board | None):
        self.executor = executor
        self.files = files
        self.board = board
        self._said: set[str] = set()
        self._full: set[int] = set()

    def step(self, step: int, loss: float, report: StepReport) -> None:
        """Take in a step; links are looked at where it has a timeline, memory always."""
        if self.board is not None:
            self.board.step(step, loss, report)
        clock, placement = self.executor.clock, self.executor.placement
        full = set(nearly_full(report).tolist())
        if report.timeline:
            found = watch(report, clock(), placement)
        elif full - self._full:
            found = memory_pressure(report, clock(), placement)
        else:
            return
        self._full |= full
        for warning in found:
            if warning.subject not in self._said:
                self._said.add(warning.subject)
                self.warn(step, str(warning), report.source)

    def warn(self, step: int, text: str, source: str = "") -> None:
        """Say a warning and write it down; `source` is where its figures come from, if they are a report's."""
        tqdm.write(f"segue: step {step}: {text}", file=sys.stderr)
        self.files.decision(Decision(step, "warn", text, source=source))

    def close(self) -> None:
        """Close the curves."""
        if self.board is not None:
            self.board.close()
