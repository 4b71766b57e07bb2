"""What a run writes while it goes on: losses, decisions, checkpoints."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import torch

from ..agent.controller import Decision
from ..placement.clock import StepReport
from ..placement.errors import SegueError
from ..placement.files import write_bytes, write_text

CHECKPOINT = "checkpoint.pt"
LOSSES = "losses.csv"
DECISIONS = "decisions.jsonl"
STOP = "stop"
COLUMNS = ("step", "loss", "step_time_s", "pause_s", "device_busy_s")


class RunFiles:
    """The growing files of one run folder, written on worker 0.

    Args:
        folder: the run folder.
        first_step: lines and decisions from this step on are dropped, since the run goes on from there.
    """

    def __init__(self, folder: Path, first_step: int = 0):
        self.folder = folder
        kept = [row for row in read_losses(folder) if row["step"] < first_step]
        lines = [",".join(COLUMNS), *(_line(row) for row in kept)]
        write_text(folder / LOSSES, "\n".join(lines) + "\n")
        decisions = [row for row in read_decisions(folder) if row["step"] <= first_step]
        write_text(folder / DECISIONS, "".join(json.dumps(row) + "\n" for row in decisions))
        self._losses = (folder / LOSSES).open("a")
        self._decisions = (folder / DECISIONS).open("a")

    def step(self, step: int, loss: float, report: StepReport, pause_s: float) -> None:
        """Add a step's line; `loss` keeps its full precision."""
        row = {
            "step": step,
            "loss": loss,
            "step_time_s": report.step_time_s,
            "pause_s": pause_s,
            "device_busy_s": [round(float(b), 6) for b in report.busy_s],
        }
        self._losses.write(_line(row) + "\n")
        self._losses.flush()

    def decision(self, decision: Decision) -> None:
        """Add a decision's line."""
        self._decisions.write(json.dumps(decision.to_record()) + "\n")
        self._decisions.flush()

    def checkpoint(self, record: dict[str, Any]) -> None:
        """Replace the checkpoint; a reader finds the old one or the new one, whole."""
        buffer = io.BytesIO()
        torch.save(record, buffer)
        write_bytes(self.folder / CHECKPOINT, buffer.getvalue())

    def close(self) -> None:
        """Close the files."""
        self._losses.close()
        self._decisions.close()


def _line(row: dict[str, Any]) -> str:
    busy = ";".join(map(str, row["device_busy_s"]))
    return f"{row['step']},{row['loss']!r},{row['step_time_s']!r},{row['pause_s']!r},{busy}"


def read_losses(folder: Path) -> list[dict[str, Any]]:
    """The rows of `losses.csv`; a last line that was cut short is left out."""
    path = folder / LOSSES
    if not path.exists():
        return []
    rows = []
    with path.open() as file:
        for row in csv.DictReader(file):
            try:
                parsed = {"step": int(row["step"]), **{k: float(row[k]) for k in ("loss", "step_time_s", "pause_s")}}
                parsed["device_busy_s"] = [float(b) for b in row["device_busy_s"].split(";")]
            except (TypeError, ValueError, AttributeError):
                break
            rows.append(parsed)
    return rows


def read_decisions(folder: Path) -> list[dict[str, Any]]:
    """The rows of `decisions.jsonl`; a last line that was cut short is left out."""
    path = folder / DECISIONS
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The last checkpoint.

    Raises:
        SegueError: if there is none or it cannot be read.
    """
    path = folder / CHECKPOINT
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SegueError(f"{path}: no checkpoint to resume from; start the run again") from None
    except Exception as error:
        raise SegueError(f"{path}: not a readable checkpoint: {str(error).splitlines()[0]}") from error
