"""`segue place`: the best placement of a model, or of a workload of the public benchmark, written for others to use."""

import argparse
import sys
from pathlib import Path

from ..placement.errors import SegueError
from ..placement.placement import Placement
from ..placement.planners.workload_search import search
from ..placement.split_file import write_split
from ..placement.workload import read_workload
from .compare import compare
from .contenders import Contender
from .pipelining_csv import write_pipelining_csv
from .placement_table import placement_table
from .planning_options import WORKLOAD_BUDGET_S
from .planning_problem import PlanningProblem, make_problem
from .trace import write_trace

# What the benchmark's own files call each objective's value, in milliseconds.
VALUE_FIELDS = {"max-load": "maxLoad", "latency": "totalLatency"}
MODEL_FILES = ("device_map", "trace", "pipelining_csv")


def place_command(options: argparse.Namespace) -> int:
    """Search a placement, write it, say what it is worth; returns the exit code.

    A placement that is not allowed is written too (it is the best there was), with the reasons on standard error, and the
    exit code is 1.

    Raises:
        SegueError: for a malformed workload, an unknown model, objective or planner, a limit or seed out of range, or a
            file that cannot be written.
    """
    if options.seed < 0:
        raise SegueError(f"--seed must be >= 0, got {options.seed}")
    if options.evaluations < 0:
        raise SegueError(f"--evaluations must be >= 0, got {options.evaluations}")
    options.out = options.out or ("split.json" if options.graph else "placement.json")
    for option in ("out", *MODEL_FILES):
        path = Path(getattr(options, option) or "x")
        if not path.parent.is_dir() or path.is_dir():
            reason = "is a folder" if path.is_dir() else f"{path.parent} is not a folder"
            raise SegueError(f"--{option.replace('_', '-')} {path}: {reason}")
    try:
        return _place_workload(options) if options.graph else _place_model(options)
    except OSError as error:
        raise SegueError(f"{error.filename or options.out}: cannot be written: {error}") from error


def _place_workload(options: argparse.Namespace) -> int:
    for option in (*MODEL_FILES, "table"):
        if getattr(options, option):
            raise SegueError(f"--{option.replace('_', '-')}: only for a --model; a workload's answer is a split")
    if options.planner != "all":
        raise SegueError(f"--planner {options.planner}: only for a --model; see `segue compare --graph` for planners")
    workload, out = read_workload(options.graph), Path(options.out)
    objective = options.objective or "max-load"
    found = search(
        workload,
        objective,
        seed=options.seed,
        budget_s=WORKLOAD_BUDGET_S if options.budget is None else options.budget,
        evaluations=options.evaluations or None,
    )
    try:
        write_split(out, workload, found.devices, {VALUE_FIELDS[objective]: found.score.value_ms})
    except ValueError as error:
        raise SegueError(f"--out {out}: cannot be written: {error}") from error
    print(
        f"{workload.name}: {objective} {found.score.value_ms:.6g} ms after {found.evaluations} placements in "
        f"{found.planning_s:.1f} s; written to {out}"
    )
    return _exit_code(found.score.reasons)


def _place_model(options: argparse.Namespace) -> int:
    options.objective = options.objective or "step-time"
    problem = make_problem(options)
    for note in problem.notes:
        print(note)
    chosen = _choose(options, problem)
    _write_model(options, problem, chosen)
    clock = problem.clock
    print(
        f"{chosen.planner}: {options.objective} {1e3 * chosen.value_s:.4g} ms ({chosen.source}), {chosen.num_devices} of "
        f"{clock.topology.num_devices} devices; written to {options.out}"
    )
    if options.table and chosen.devices is not None:
        print(placement_table(clock, chosen.devices))
    return _exit_code(chosen.reasons)


def _choose(options: argparse.Namespace, problem: PlanningProblem) -> Contender:
    """The best placement of those that the planners found."""
    comparison = compare(
        problem.clock,
        [options.planner],
        options.seed,
        options.evaluations or None,
        objective=problem.objective,
        budget_s=options.budget,
        policy=options.policy,
        progress=True,
    )
    placements = [contender for contender in comparison.contenders if contender.devices is not None]
    if not placements:
        reasons = "; ".join(reason for contender in comparison.contenders for reason in contender.reasons)
        raise SegueError(f"--planner {options.planner}: makes no placement of this: {reasons or 'it is none'}")
    if comparison.winner.devices is None:
        faster = comparison.winner
        times = f"{1e3 * faster.value_s:.4g} ms against {1e3 * placements[0].value_s:.4g} ms"
        print(f"segue: {faster.planner} would be faster: {times}; the best placement is written", file=sys.stderr)
    return placements[0]


def _write_model(options: argparse.Namespace, problem: PlanningProblem, chosen: Contender) -> None:
    clock, devices = problem.clock, chosen.devices
    assert devices is not None
    placement = Placement(devices, problem.microbatches)
    predicted = chosen.value_s if problem.objective == "step-time" else None
    if options.trace:
        report = clock.step(Placement(devices, clock.microbatches), timeline=True)
        if not report.timeline:
            raise SegueError(f"--trace: {problem.objective} has no timeline; use --objective step-time or latency")
        write_trace(options.trace, report.timeline, "predicted (simulated)")
    if options.pipelining_csv:
        if problem.objective != "step-time":
            raise SegueError("--pipelining-csv: only for --objective step-time")
        ranks = write_pipelining_csv(options.pipelining_csv, clock, devices)
        print(f"{options.pipelining_csv}: rank 0 to {len(ranks) - 1} are {', '.join(ranks)}")
    if options.device_map:
        from ..placement.device_map import write_device_map

        split = write_device_map(options.device_map, clock.graph, clock.topology, devices)
        if split:
            print(
                f"segue: {options.device_map}: a device_map places whole modules, but this placement splits {len(split)} "
                f"({', '.join(split[:4])}{', …' if len(split) > 4 else ''}); each follows its largest part",
                file=sys.stderr,
            )
    placement.save(options.out, clock.graph, clock.topology, predicted_step_time_s=predicted)


def _exit_code(reasons: tuple[str, ...]) -> int:
    for reason in reasons:
        print(f"segue: not allowed: {reason}", file=sys.stderr)
    return 1 if reasons else 0
