"""The public benchmark: every planner on every workload of a folder, beside the best known values.

    segue bench placement FOLDER [--seconds 10] [--planners all] [--seed 0]

FOLDER holds workloads as JSON at any depth; what lies under a folder `latency` is placed for latency, the rest for
max-load. Best known values come from the nearest `reference.json` in FOLDER or above it.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..placement.errors import SegueError
from ..placement.files import read_object, write_text
from ..placement.workload import read_workload
from ..placement.workload_clock import WorkloadClock
from .compare import compare
from .contenders import Contender
from .planning_options import add_bench_placement_options
from .tables import format_table

# Of a workload's reference figures, the least of these is what there is to beat.
FIGURES = {
    "max-load": ("best_known", "contiguous_optimum", "expert", "scotch", "pipedream"),
    "latency": ("best_known", "greedy", "expert", "scotch"),
}
BEST_OF = "best of all"
WITHIN = 0.01


def main(arguments: list[str] | None = None) -> int:
    """Run every planner on every workload and print the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_bench_placement_options(parser)
    options = parser.parse_args(arguments)
    try:
        return bench_command(options)
    except SegueError as error:
        print(f"bench_placement: error: {error}", file=sys.stderr)
        return 2


def bench_command(options: argparse.Namespace) -> int:
    """Run the benchmark as the options say; returns the exit code.

    Raises:
        SegueError: if the folder holds no workload or a malformed one, a planner is unknown, or a limit is out of range.
    """
    if options.json and not Path(options.json).parent.is_dir():
        raise SegueError(f"--json {options.json}: {Path(options.json).parent} is not a folder")
    names = [*filter(None, options.planners.split(","))]
    budget = None if options.evaluations else options.seconds
    rows = bench_placement(Path(options.folder), budget, options.seed, names, options.evaluations)
    if options.json:
        write_text(options.json, json.dumps(rows, indent=1, allow_nan=False) + "\n")
    print(workloads_table(rows))
    print()
    print(planners_table(rows))
    return 0


def bench_placement(
    folder: Path,
    seconds: float | None,
    seed: int = 0,
    planners: Sequence[str] = ("annealing",),
    evaluations: int | None = None,
) -> list[dict[str, Any]]:
    """Run planners on every workload under a folder.

    Args:
        folder: where the workloads are.
        seconds: budget of each search; `None` for none.
        seed: of every search.
        planners: as for `compare`.
        evaluations: placements that each search may price.

    Returns:
        For each workload a row a planner and one of the best of them (`planner` is `best of all`): `workload`, `objective`,
        `planner`, `value` and `best_known` (ms; `None` if there is none), `gap` (value over best known, less 1), `feasible`,
        `planning_s`, `evaluations`, `bound` (ms, `None` without one), `reasons` (why it is not allowed or not available).

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
        clock = WorkloadClock(read_workload(path), objective)
        comparison = compare(clock, planners, seed, evaluations, objective=objective, budget_s=seconds, progress=True)
        best = known.get((objective, name))
        found = [_row(name, objective, best, contender) for contender in comparison.contenders]
        total = {field: sum(row[field] for row in found) for field in ("planning_s", "evaluations")}
        rows += [*found, {**found[0], **total, "planner": BEST_OF, "found_by": found[0]["planner"]}]
        print(f"{name}: {found[0]['value']:.6g} ms ({found[0]['planner']})", file=sys.stderr)
    return rows


def _row(name: str, objective: str, best: float | None, contender: Contender) -> dict[str, Any]:
    value = 1e3 * contender.value_s if np.isfinite(contender.value_s) else None
    return {
        "workload": name,
        "objective": objective,
        "planner": contender.planner,
        "value": value,
        "best_known": best,
        "gap": None if best is None or value is None or not contender.feasible else value / best - 1,
        "feasible": contender.feasible,
        "planning_s": contender.planning_s,
        "evaluations": contender.evaluations,
        "bound": None if contender.bound_s is None else 1e3 * contender.bound_s,
        "reasons": list(contender.reasons),
    }


def workloads_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line a workload: the best of all planners beside the best known value."""
    lines = [
        (
            row["workload"],
            row["objective"],
            None if row["value"] is None else f"{row['value']:.4f}",
            row["found_by"],
            None if row["best_known"] is None else f"{row['best_known']:.4f}",
            _percent(row["gap"]),
            row["feasible"],
            f"{row['planning_s']:.1f}",
        )
        for row in rows
        if row["planner"] == BEST_OF
    ]
    headers = ("workload", "objective", "best (ms)", "found by", "best known (ms)", "gap", "allowed", "seconds")
    return format_table(lines, headers)


def planners_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line a planner and objective, over all workloads: its gaps to the best known values; the best of all last."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    singles = set()
    for row in rows:
        planner = row["planner"]
        if planner.startswith("single:"):
            # A workload's rows are sorted, so the first is its best.
            if (row["objective"], row["workload"]) in singles:
                continue
            singles.add((row["objective"], row["workload"]))
            planner = "single (the best device)"
        groups.setdefault((row["objective"], planner), []).append(row)
    lines = []
    for (objective, planner), of in groups.items():
        gaps = [row["gap"] for row in of if row["gap"] is not None]
        lines.append(
            (
                objective,
                planner,
                f"{sum(row['feasible'] for row in of)} of {len(of)}",
                _percent(float(np.median(gaps)) if gaps else None),
                _percent(max(gaps, default=None)),
                f"{sum(gap <= WITHIN for gap in gaps)} of {len(gaps)}",
                f"{np.mean([row['planning_s'] for row in of]):.2f}",
            )
        )
    lines.sort(key=lambda line: (line[0], line[1] == BEST_OF))
    headers = ("objective", "planner", "allowed", "median gap", "worst gap", "within 1 %", "seconds a workload")
    return format_table(lines, headers)


def _percent(gap: float | None) -> str | None:
    return None if gap is None else f"{100 * gap:+.3f} %"


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
