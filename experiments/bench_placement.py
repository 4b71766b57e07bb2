"""The public benchmark: every workload of a folder searched, beside the best known values.

    python -m segue.experiments.bench_placement FOLDER [--seconds 10] [--seed 0]

FOLDER holds workloads as JSON at any depth; what lies under a folder `latency` is placed for latency, the rest for
max-load. Best known values come from the nearest `reference.json` in FOLDER or above it.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..placement.errors import SegueError
from ..placement.planners.workload_search import search
from ..placement.workload import read_object, read_workload
from .tables import format_table

# Of a workload's reference figures, the least of these is what there is to beat.
FIGURES = {
    "max-load": ("best_known", "contiguous_optimum", "expert", "scotch", "pipedream"),
    "latency": ("best_known", "greedy", "expert", "scotch"),
}
HEADERS = ("workload", "objective", "value (ms)", "best known (ms)", "gap", "allowed", "seconds", "evaluations")


def main(arguments: list[str] | None = None) -> int:
    """Search every workload and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each workload")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="", help="also write the rows to this file")
    options = parser.parse_args(arguments)
    try:
        rows = bench_placement(Path(options.folder), options.seconds, options.seed)
        if options.json:
            Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
    except (SegueError, OSError) as error:
        print(f"bench_placement: error: {error}", file=sys.stderr)
        return 2
    print(bench_table(rows))
    return 0


def bench_placement(folder: Path, seconds: float, seed: int = 0) -> list[dict[str, Any]]:
    """Search every workload under a folder.

    Args:
        folder: where the workloads are.
        seconds: budget of each search.
        seed: of every search.

    Returns:
        A row for each workload: `workload`, `objective`, `value` and `best_known` (ms; `None` if there is none), `gap` (value
        over best known, less 1), `feasible`, `planning_s`, `evaluations`.

    Raises:
        SegueError: if the folder holds no workload, or one that is malformed.
    """
    paths = [path for path in sorted(folder.rglob("*.json")) if '"maxFPGAs"' in path.read_text(errors="replace")]
    if not paths:
        raise SegueError(f"{folder}: holds no workload (a .json file with maxFPGAs)")
    known = _best_known(folder)
    rows = []
    for path in paths:
        objective = "latency" if "latency" in path.absolute().parts else "max-load"
        name = f"{path.absolute().parent.name}/{path.stem}"
        found = search(read_workload(path), objective, seed=seed, budget_s=seconds)
        best = known.get((objective, name))
        rows.append(
            {
                "workload": name,
                "objective": objective,
                "value": found.score.value_ms,
                "best_known": best,
                "gap": None if best is None else found.score.value_ms / best - 1,
                "feasible": found.score.feasible,
                "planning_s": found.planning_s,
                "evaluations": found.evaluations,
            }
        )
        print(f"{name}: {found.score.value_ms:.6g} ms", file=sys.stderr)
    return rows


def bench_table(rows: list[dict[str, Any]]) -> str:
    """The rows of `bench_placement` as one table."""
    lines = [
        (
            row["workload"],
            row["objective"],
            f"{row['value']:.4f}",
            "-" if row["best_known"] is None else f"{row['best_known']:.4f}",
            "-" if row["gap"] is None else f"{100 * row['gap']:+.3f} %",
            row["feasible"],
            f"{row['planning_s']:.1f}",
            row["evaluations"],
        )
        for row in rows
    ]
    return format_table(lines, HEADERS)


def _best_known(folder: Path) -> dict[tuple[str, str], float]:
    """Objective and workload -> the least reference figure in milliseconds."""
    places = [folder.absolute(), *folder.absolute().parents]
    path = next((place / "reference.json" for place in places if (place / "reference.json").is_file()), None)
    record = read_object(path) if path else {}
    known = {}
    for section, rows in record.items():
        objective = "latency" if section == "latency" else "max-load"
        for row in rows if isinstance(rows, list) else []:
            figures = [row[field] for field in FIGURES[objective] if row.get(field) is not None]
            if figures:
                known[objective, row["workload"]] = min(figures)
    return known


if __name__ == "__main__":
    sys.exit(main())
