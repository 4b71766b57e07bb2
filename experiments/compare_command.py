"""`segue compare`: the agent beside manual configurations, planners and data parallel training, on one problem."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..placement.errors import SegueError
from ..placement.files import write_bytes, write_text
from ..placement.placement import Placement
from .compare import Comparison, compare, contender_names
from .compare_table import VALUE_NAMES, comparison_table, recommendation, shown
from .contenders import Contender
from .figures import comparison_figure
from .measure import Measured, MeasureJob, check_present, measure_placements
from .planning_options import EVALUATIONS
from .planning_problem import PlanningProblem, check_counts, make_problem
from .run_config import find_topology

TOP = 3
"""So many of the best placements are measured, besides the best manual one and the agent's."""
ROUNDS, STEPS = 2, 3


def compare_command(options: argparse.Namespace) -> int:
    """Run every planner and the agent, print the table; returns the exit code.

    Raises:
        SegueError: for an unknown model, topology, planner or policy, or a file that cannot be read or written.
    """
    check_counts(options, ("evaluations",))
    if options.budget is not None and not options.budget > 0:
        raise SegueError(f"--budget must be > 0 seconds, got {options.budget:g}")
    options.objective = options.objective or ("max-load" if options.graph else "step-time")
    picture = _picture_path(options)
    for option, path in (("--json", options.json), ("--picture", picture)):
        if path and (not Path(path).parent.is_dir() or Path(path).is_dir()):
            reason = "is a folder" if Path(path).is_dir() else f"{Path(path).parent} is not a folder"
            raise SegueError(f"{option} {path}: {reason}")
    names = [*filter(None, options.planners.split(",")), *(f"file:{path}" for path in options.placement)]
    _check_early(options, names)
    problem = make_problem(options)
    if options.measure and not problem.executable:
        raise SegueError(f"--measure: {options.model} was traced at module granularity; such a graph cannot be run")
    comparison = compare(
        problem.clock,
        names,
        options.seed,
        options.evaluations,
        objective=problem.objective,
        budget_s=options.budget,
        policy=options.policy,
        progress=True,
    )
    measured = _measure(options, problem, comparison) if options.measure else [None] * len(comparison.contenders)
    _write(options, picture, problem, comparison, measured)
    for note in problem.notes:
        print(note)
    print(_limits(options))
    print(comparison_table(comparison, measured))
    late = sum(entry.overruns for entry in measured if entry)
    if late:
        print(f"{late} instructions were late: this machine was too busy to keep the declared pace while it measured.")
    print(recommendation(comparison))
    return 0


def _check_early(options: argparse.Namespace, names: list[str]) -> None:
    """What can be known to be wrong before the model is captured and measured."""
    if options.measure and (options.graph or options.objective != "step-time"):
        raise SegueError("--measure: only training steps can be run; give --model and --objective step-time")
    if not options.graph:
        topology = find_topology(options.topology)
        contender_names(names, topology)
        if options.measure:
            check_present(topology)


def _limits(options: argparse.Namespace) -> str:
    if options.budget is None:
        return f"each search: {options.evaluations or EVALUATIONS} evaluations, seed {options.seed}"
    most = f" and {options.evaluations} evaluations" if options.evaluations else ""
    return (
        f"each search: up to {options.budget:g} s{most}, seed {options.seed}; how far it gets depends on this machine"
    )


def _picture_path(options: argparse.Namespace) -> str:
    """Where the picture goes: where it is asked for, else beside the JSON."""
    if options.picture or not options.json:
        return options.picture
    return str(Path(options.json).with_suffix(".png"))


def _measure(options: argparse.Namespace, problem: PlanningProblem, comparison: Comparison) -> list[Measured | None]:
    """Run the best placements, the best manual one and the agent's; the contenders' results, in order."""
    placements = [c for c in comparison.contenders if c.feasible and c.devices is not None]
    manual = [contender for contender in placements if contender.kind == "manual"][:1]
    agent = [contender for contender in placements if contender.kind == "agent"]
    chosen: dict[bytes, Contender] = {}
    for contender in (*placements[:TOP], *manual, *agent):
        chosen.setdefault(_key(contender), contender)
    job = MeasureJob(
        options.model,
        problem.batch_size,
        problem.microbatches,
        options.image_size,
        options.sequence_length,
        options.seed,
        ROUNDS,
        STEPS,
    )
    maps = [contender.devices for contender in chosen.values() if contender.devices is not None]
    found = dict(zip(chosen, measure_placements(job, problem.clock.topology, maps, problem.profile), strict=True))
    return [found.get(_key(contender)) for contender in comparison.contenders]


def _key(contender: Contender) -> bytes:
    return b"" if contender.devices is None else contender.devices.tobytes()


def _write(
    options: argparse.Namespace,
    picture: str,
    problem: PlanningProblem,
    comparison: Comparison,
    measured: Sequence[Measured | None],
) -> None:
    if options.json:
        rows = comparison.rows()
        for row, entry in zip(rows, measured, strict=True):
            ran = entry is not None and bool(entry.step_times_s)
            row["measured_s"] = entry.median_s if entry and ran else None
            row["measured_clock"] = entry.source if entry and ran else None
            row["predicted_over_measured"] = entry.ratio if entry and ran else None
        write_text(options.json, json.dumps(rows, indent=1, allow_nan=False) + "\n")
    if picture and any(np.isfinite(contender.value_s) for contender in comparison.contenders):
        write_bytes(picture, _draw(problem, comparison))


def _draw(problem: PlanningProblem, comparison: Comparison) -> bytes:
    clock, name = problem.clock, VALUE_NAMES[comparison.objective]
    contenders = [comparison.contenders[place] for place in shown(comparison.contenders)]
    bars = [(c.planner, c.kind, 1e3 * c.value_s, c.feasible) for c in contenders if np.isfinite(c.value_s)]
    placements = [
        contender for contender in comparison.contenders if contender.feasible and contender.devices is not None
    ]
    best = next(iter(placements), None)
    manual = next((contender for contender in placements if contender.kind == "manual"), None)
    timelines = {}
    for what, contender in (("best placement", best), ("best manual configuration", manual)):
        if contender is None or contender.devices is None:
            continue
        report = clock.step(Placement(contender.devices, clock.microbatches), timeline=True)
        if report.timeline:
            timelines[f"{what}: {contender.planner}, {1e3 * report.step_time_s:.4g} ms (simulated)"] = report.timeline
    busy = {span.lane for spans in timelines.values() for span in spans}
    names = [device.name for device in clock.topology.devices if device.name in busy]
    title = f"{clock.graph.name} on {clock.topology.name}"
    return comparison_figure(title, f"{name} (ms, simulated)", bars, timelines, names)
