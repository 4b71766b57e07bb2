"""Why a group of workers failed: the notes they leave, and which of them was the first."""

import faulthandler
import json
import os
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from torch.distributed.elastic.multiprocessing.api import MultiprocessContext

from ..errors import SegueError
from ..files import write_text
from ..topology import Topology

SETTLE_S = 0.5
"""From the first sign of a failure until its cause is looked for: others may have failed before, and be seen later."""
SILENCE_S = 3.0
"""How long the others are given to fail too, before one that did not is taken to hang."""
STACK_SIGNAL = signal.SIGUSR2
"""What a worker answers by writing down where it is."""

RESTART = 75
"""Exit code of a worker that has saved its state and is to be started again."""

_TIMED_OUT = "Timed out waiting"
_LOST = ("by peer", "Broken pipe")


class WorkerFailed(RuntimeError):
    """A worker ended before its work did; the message says which and how.

    Attributes:
        exit_code: what the launching process should end with.
        worker: its number, if it is known which one it was.
        gone: whether it was killed or hung, so that the others could go on without it; else it failed by itself.
    """

    def __init__(self, message: str, exit_code: int = 1, worker: int | None = None, gone: bool = False):
        super().__init__(message)
        self.exit_code = exit_code
        self.worker = worker
        self.gone = gone


@dataclass(frozen=True)
class _Note:
    """What a worker wrote before it ended.

    Attributes:
        kind: `user` (an error to be shown as it is), `silence` (it waited in vain for a message), `lost` (another worker went
            away) or `error`.
        text: the message, or the traceback.
        moment: when that was.
    """

    kind: str
    text: str
    moment: float


@contextmanager
def noting_failures(folder: Path, rank: int, script: str = "") -> Iterator[None]:
    """Turn an exception into a note for the launching process and an exit code.

    Args:
        folder: where the launching process looks.
        rank: this worker.
        script: the user's file, if there is one; tracebacks begin in it.
    """
    with (folder / f"stack-{rank}").open("w") as stack:
        faulthandler.register(STACK_SIGNAL, stack, all_threads=False)
        try:
            yield
        except SegueError as error:
            _write_note(folder, rank, "user", str(error))
            raise SystemExit(2) from None
        except Exception as error:
            _write_note(folder, rank, _kind(error), "".join(_traceback(error, script)).rstrip())
            raise SystemExit(1) from None
        finally:
            faulthandler.unregister(STACK_SIGNAL)


def _kind(error: Exception) -> str:
    """Gloo has one type for all its errors."""
    text = str(error)
    return "silence" if _TIMED_OUT in text else "lost" if any(words in text for words in _LOST) else "error"


def _write_note(folder: Path, rank: int, kind: str, text: str) -> None:
    write_text(folder / f"note-{rank}", json.dumps([kind, text, time.time()]))


def _traceback(error: Exception, script: str) -> list[str]:
    """As Python prints it, without the frames that started the script."""
    start: TracebackType | None = error.__traceback__
    while script and start is not None and start.tb_frame.f_code.co_filename != script:
        start = start.tb_next
    return traceback.format_exception(type(error), error, start or error.__traceback__)


class Guard:
    """Looks after workers from the process that has started them.

    Args:
        folder: where they leave notes.
        topology: one worker for each of its devices.
        workers: as elastic has started them.
        message_timeout_s: after how long they give up waiting for each other.
    """

    def __init__(self, folder: Path, topology: Topology, workers: MultiprocessContext, message_timeout_s: float):
        self.folder = folder
        self.names = [device.name for device in topology.devices]
        self.workers = workers
        self.pids: dict[int, int] = workers.pids()
        self.message_timeout_s = message_timeout_s

    def failure(self) -> Exception | None:
        """The error to raise if a worker has failed."""
        if not any(self._exits().values()) and not self._notes():
            return None
        time.sleep(SETTLE_S)
        # A worker that lost its connection to another may say so before that one's process has ended.
        deadline = time.monotonic() + SILENCE_S
        while self._only_lost() and time.monotonic() < deadline:
            time.sleep(0.1)
        return self.reason()

    def finished(self) -> bool:
        """Whether all have ended by themselves, and well."""
        exits = self._exits()
        return exits.keys() == self.pids.keys() and not any(exits.values())

    def kill(self) -> None:
        """End the workers that are left; one that runs a script has a session of its own, and takes its children along."""
        for rank in self.pids.keys() - self._exits().keys():
            with suppress(ProcessLookupError):
                os.killpg(self.pids[rank], signal.SIGKILL)
        self.workers.close(signal.SIGKILL)

    def _only_lost(self) -> bool:
        notes = self._notes()
        mute = any(code for rank, code in self._exits().items() if rank not in notes)
        return not mute and all(note.kind == "lost" for note in notes.values())

    def reason(self, exits: dict[int, int] | None = None) -> Exception:
        """What went wrong: what cannot come of another's failure first.

        Args:
            exits: exit codes of workers that are no longer there to be asked.
        """
        exits, notes = {**self._exits(), **(exits or {})}, self._notes()
        by_kind: dict[str, list[int]] = {kind: [] for kind in ("user", "error", "silence", "lost")}
        for rank in sorted(notes, key=lambda rank: notes[rank].moment):
            by_kind[notes[rank].kind].append(rank)
        for rank in by_kind["user"]:
            return SegueError(notes[rank].text)
        mute = {rank: code for rank, code in exits.items() if code and rank not in notes}
        for rank, code in mute.items():
            # A library that loses its peer may abort the process.
            if code < 0 and code != -signal.SIGABRT:
                return self._ended(rank, code)
        if RESTART in mute.values():
            return WorkerFailed("the workers ended at a checkpoint, to be started again", RESTART)
        for rank in by_kind["error"]:
            return WorkerFailed(f"{self._worker(rank)} failed:\n{notes[rank].text}", 1, rank)
        for rank, code in mute.items():
            return self._ended(rank, code)
        for rank in by_kind["silence"]:
            return self._silence(rank, notes[rank])
        first = by_kind["lost"][0]
        return WorkerFailed(f"{self._worker(first)} lost its connection to another:\n{notes[first].text}", 1, first)

    def _ended(self, rank: int, code: int) -> WorkerFailed:
        """A worker that left no note."""
        how = f"ended with exit code {code}" if code > 0 else f"was killed by {signal.Signals(-code).name}"
        return WorkerFailed(f"{self._worker(rank)} {how}{self._last_words(rank)}", max(1, code), rank, code < 0)

    def _silence(self, rank: int, note: _Note) -> WorkerFailed:
        """A worker has waited in vain: blame the one that hangs, if there is one."""
        deadline = time.monotonic() + SILENCE_S
        while len(hung := self._hung()) > 1 and time.monotonic() < deadline:
            time.sleep(0.1)
        waited = f"{self._worker(rank)} waited {self.message_timeout_s:g} s for a message"
        if not hung:
            return WorkerFailed(f"{waited} that did not come; is the network cut?\n{note.text}")
        if len(hung) > 1:
            names = ", ".join(self._worker(other) for other in hung)
            return WorkerFailed(f"{waited}; these did not give up with it: {names}\n{note.text}")
        return WorkerFailed(f"{self._worker(hung[0])} hangs ({self._place(hung[0])}); {waited}", 1, hung[0], gone=True)

    def _hung(self) -> list[int]:
        ended = {*self._exits(), *self._notes()}
        return [rank for rank in self.pids if rank not in ended]

    def _place(self, rank: int) -> str:
        """Where a worker is that does nothing."""
        try:
            state = Path(f"/proc/{self.pids[rank]}/stat").read_text().rpartition(")")[2].split()[0]
            if state in "Tt":
                return "stopped by a signal"
            os.kill(self.pids[rank], STACK_SIGNAL)
        except OSError:
            return "its process is gone"
        time.sleep(SETTLE_S)
        lines = (self.folder / f"stack-{rank}").read_text().splitlines()[1:]
        return lines[0].strip() if lines else "it does not say where"

    def _exits(self) -> dict[int, int]:
        """Exit codes of the workers that have ended, negative for a signal."""
        started = self.workers._pc
        codes = {rank: process.exitcode for rank, process in enumerate(started.processes if started else ())}
        return {rank: code for rank, code in codes.items() if code is not None}

    def _notes(self) -> dict[int, _Note]:
        paths = ((rank, self.folder / f"note-{rank}") for rank in self.pids)
        return {rank: _Note(*json.loads(path.read_text())) for rank, path in paths if path.exists()}

    def _worker(self, rank: int) -> str:
        return f"worker {rank} ({self.names[rank]})"

    def _last_words(self, rank: int) -> str:
        """The end of what a worker wrote that nobody has seen."""
        logs = sorted(self.folder.glob(f"*/*/{rank}/stderr.log"))
        text = logs[-1].read_text(errors="replace").rstrip() if logs else ""
        return f":\n{chr(10).join(text.splitlines()[-20:])}" if text else ""
