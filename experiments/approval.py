"""Moves that a person approves of: asked at the terminal of `segue run`, answered there or by a file in the run folder."""

import os
import select
import sys
import termios
from collections import Counter
from pathlib import Path
from typing import Any, TextIO

from ..placement.files import write_text
from .run_files import PROPOSAL, read_proposal

ANSWERS = {"y": True, "yes": True, "n": False, "no": False}


def answer_file(folder: Path, step: int) -> Path:
    """Where the answer to what was proposed before a step is looked for."""
    return folder / f"answer-{step}"


def read_answer(folder: Path, step: int) -> bool | None:
    """The answer to what was proposed before a step; none as long as there is none that says yes or no."""
    try:
        return ANSWERS.get(answer_file(folder, step).read_text().strip().lower())
    except OSError:
        return None


class Questions:
    """Puts every proposal that the workers write into a run folder to whoever is at the terminal.

    Args:
        folder: the run folder; what an earlier run has left of questions and answers is removed.
        terminal: where answers are typed; where it is none, files answer.
    """

    def __init__(self, folder: Path, terminal: TextIO | None = None):
        self._folder = folder
        terminal = terminal or sys.stdin
        self._terminal = terminal if terminal is not None and terminal.isatty() else None
        self._open: int | None = None
        for file in (folder / PROPOSAL, *folder.glob("answer-*")):
            file.unlink(missing_ok=True)

    def poll(self) -> None:
        """Ask what is new, and take in what has been typed."""
        proposal = read_proposal(self._folder)
        step = None if proposal is None else int(proposal["step"])
        if step != self._open:
            self._open = step
            if proposal is not None:
                if self._terminal is not None:
                    # What was typed before is no answer.
                    termios.tcflush(self._terminal, termios.TCIFLUSH)
                _say(describe(proposal))
                self._ask(int(proposal["step"]))
        if step is not None:
            self._listen(step)
            self._check(step)

    def _ask(self, step: int) -> None:
        if self._terminal is None:
            _say(f"answer with: echo yes > {answer_file(self._folder, step)} (or no); the run goes on meanwhile")
        else:
            _say("move? [y/n] (the run goes on meanwhile)")

    def _listen(self, step: int) -> None:
        """Turn a line that has been typed into the file that the workers look for."""
        if self._terminal is None or not _in_foreground(self._terminal):
            return
        if not select.select([self._terminal], [], [], 0.0)[0]:
            return
        line = self._terminal.readline()
        if not line:
            self._terminal = None
            self._ask(step)
        elif line.strip():
            write_text(answer_file(self._folder, step), line)

    def _check(self, step: int) -> None:
        """Remove an answer that is neither yes nor no."""
        file = answer_file(self._folder, step)
        text = file.read_text().strip() if file.exists() else ""
        if text and text.lower() not in ANSWERS:
            file.unlink()
            _say(f"{text!r} is neither yes nor no")
            self._ask(step)


def describe(proposal: dict[str, Any]) -> str:
    """A proposed move in words: how much, from where to where, and why."""
    pairs = Counter(map(tuple, proposal["moves"].values()))
    ways = ", ".join(f"{source} -> {target}: {count}" for (source, target), count in pairs.most_common())
    return (
        f"before step {proposal['step']} the agent would move {proposal['ops_moved']} ops "
        f"({proposal['bytes_moved'] / 2**20:.1f} MiB; {ways}); {proposal['why']}"
    )


def _in_foreground(terminal: TextIO) -> bool:
    """Whether this process may read from its terminal; the system would stop one in the background that tries."""
    try:
        return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return True


def _say(text: str) -> None:
    print(f"\nsegue: {text}", file=sys.stderr)
