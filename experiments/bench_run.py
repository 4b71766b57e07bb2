"""The main job's figures: the default run with the agent, without it, and told of the slow-down from the start.

    python -m segue.experiments.bench_run [--out FOLDER] [--quick]

The three runs share one profile, so that emulated devices keep the same pace. Prints the table that the README shows.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ..placement.errors import SegueError
from .cli import main as segue
from .run_files import read_losses
from .tables import format_table

STEPS, QUICK_STEPS = 200, 60


def main() -> int:
    """Run all three and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/bench", help="folder for the three run folders")
    parser.add_argument("--quick", action="store_true", help="60 steps instead of 200")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    out, steps = Path(options.out), QUICK_STEPS if options.quick else STEPS
    common = ["run", "--steps", str(steps), "--seed", str(options.seed)]
    profile = str(out / "on" / "profile.json")
    slow = f"dev1@{steps // 2}:3"
    runs = {
        "on": ["--slow", slow],
        "off": ["--slow", slow, "--agent", "off", "--profile", profile],
        "told": ["--slow", "dev1@0:3", "--profile", profile],
    }
    for name, arguments in runs.items():
        print(f"== {name}: segue {' '.join([*common, *arguments])}", file=sys.stderr)
        if segue([*common, *arguments, "--run-dir", str(out / name)]) != 0:
            raise SegueError(f"the run {name!r} failed")
    print(_table(out))
    return 0


def _table(out: Path) -> str:
    on, off, told = (json.loads((out / name / "summary.json").read_text()) for name in ("on", "off", "told"))
    losses = [[row["loss"] for row in read_losses(out / name)] for name in ("on", "off", "told")]
    equal = int(np.sum([a == b == c for a, b, c in zip(*losses, strict=True)]))
    start, after = on["acts"][0]["before_s"][1], on["acts"][0]["after_s"][1]
    end, reference = on["acts"][-1]["after_s"][1], told["step_time_after_first_s"]
    without = off["acts"][-1]["after_s"][1]
    idle, left = off["idle_device_s"], on["idle_device_s"]
    rows: list[tuple[str, Any, Any, str]] = [
        ("step time, first act (ms)", _ms(start), _ms(after), _change(start, after)),
        ("step time, second act (ms)", _ms(without), _ms(end), _change(without, end)),
        (
            "runtime (s)",
            f"{off['runtime_s']:.1f}",
            f"{on['runtime_s']:.1f}",
            _change(off["runtime_s"], on["runtime_s"]),
        ),
        ("devices idle (device seconds)", f"{idle:.0f}", f"{left:.0f}", _change(idle, left)),
        ("told of the slow-down from the start (ms)", "", _ms(reference), f"reached {end / reference - 1:+.1%}"),
        ("ops moved", "", f"{on['ops_moved_share']:.0%}", ""),
        ("migration pause, all moves (s)", "", f"{on['pause_s_total']:.2f}", ""),
        ("losses equal bit for bit", "", f"{equal} of {len(losses[0])}", ""),
    ]
    return format_table(rows, (f"{on['model']} on {on['data']} ({on['device_kind']})", "agent off", "agent on", ""))


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f}"


def _change(before: float, after: float) -> str:
    return f"{after / before - 1:+.0%}"


if __name__ == "__main__":
    sys.exit(main())
