"""`segue place`: the answer to one workload of the public benchmark, as a split that anybody's scorer can check."""

import argparse
import sys
from pathlib import Path

from ..placement.errors import SegueError
from ..placement.planners.workload_search import search
from ..placement.split_file import write_split
from ..placement.workload import read_workload

# What the benchmark's own files call each objective's value, in milliseconds.
VALUE_FIELDS = {"max-load": "maxLoad", "latency": "totalLatency"}


def place_command(options: argparse.Namespace) -> int:
    """Search a placement, write the split, say what it is worth; returns the exit code.

    A placement that is not allowed is written too (it is the best there was), with the reasons on standard error.

    Raises:
        SegueError: for a malformed workload, an unknown objective, a limit or seed out of range, or a file that cannot be
            written.
    """
    if options.seed < 0:
        raise SegueError(f"--seed must be >= 0, got {options.seed}")
    if options.evaluations < 0:
        raise SegueError(f"--evaluations must be >= 0, got {options.evaluations}")
    out = Path(options.out)
    if not out.parent.is_dir() or out.is_dir():
        raise SegueError(f"--out {out}: {'is a folder' if out.is_dir() else f'{out.parent} is not a folder'}")
    workload = read_workload(options.graph)
    found = search(
        workload,
        options.objective,
        seed=options.seed,
        budget_s=options.budget,
        evaluations=options.evaluations or None,
    )
    try:
        write_split(out, workload, found.devices, {VALUE_FIELDS[options.objective]: found.score.value_ms})
    except (OSError, ValueError) as error:
        raise SegueError(f"--out {out}: cannot be written: {error}") from error
    print(
        f"{workload.name}: {options.objective} {found.score.value_ms:.6g} ms after {found.evaluations} placements in "
        f"{found.planning_s:.1f} s; written to {out}"
    )
    for reason in found.score.reasons:
        print(f"segue: not allowed: {reason}", file=sys.stderr)
    return 0
