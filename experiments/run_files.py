"""What a run writes while it goes on: losses and decisions; its checkpoints are in a folder beside them."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..agent.controller import Decision
from ..placement.files import write_json, write_text

CHECKPOINTS = "checkpoints"
LOSSES = "losses.csv"
DECISIONS = "decisions.jsonl"
STOP = "stop"
PROPOSAL = "proposal.json"
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

    def step(self, step: int, loss: float, step_time_s: float, pause_s: float, busy_s: Sequence[float]) -> None:
        """Add a step's line; `loss` keeps its full precision, `busy_s` is of each device."""
        row = {
            "step": step,
            "loss": loss,
            "step_time_s": step_time_s,
            "pause_s": pause_s,
            "device_busy_s": [round(b, 6) for b in busy_s],
        }
        self._losses.write(_line(row) + "\n")
        self._losses.flush()

    def decision(self, decision: Decision) -> None:
        """Add a decision's line; a proposal stands in a file of its own until it is decided on."""
        self._decisions.write(json.dumps(decision.to_record()) + "\n")
        self._decisions.flush()
        if decision.action == "propose":
            write_json(self.folder / PROPOSAL, decision.to_record())
        elif decision.action != "warn":
            (self.folder / PROPOSAL).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files; what is still proposed is no question any more."""
        (self.folder / PROPOSAL).unlink(missing_ok=True)
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


def read_proposal(folder: Path) -> dict[str, Any] | None:
    """The proposal that waits for an answer, as `Decision.to_record` gives it; None if there is none."""
    try:
        return json.loads((folder / PROPOSAL).read_text())
    except FileNotFoundError:
        return None
