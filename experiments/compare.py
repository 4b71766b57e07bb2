"""Planners side by side on one clock."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..placement.clock import SimulatedClock
from ..placement.placement import Placement
from ..placement.planners import MANUAL, Plan, expand, plan
from .tables import format_table

Row = dict[str, Any]


def compare(
    clock: SimulatedClock, names: Sequence[str], seed: int = 0, evaluations: int = 1000, plans: Sequence[Plan] = ()
) -> list[Row]:
    """Run planners on one clock with the same seed and the same number of evaluations.

    Args:
        clock: what prices placements.
        names: planners, or `single`, `manual`, `all` (`segue.placement.planners.expand`).
        seed: of every planner.
        evaluations: placements that each search may price.
        plans: plans made elsewhere for the same clock, such as the policy's, that take part.

    Returns:
        A row for each plan, what fits memory first, the fastest first: `planner`, `value` (seconds of a step), `feasible`,
        `clock` (`simulated`), `planning_s`, `evaluations`, `best` (true for one row: the winner), `ratio` (value over that of
        the best manual configuration that took part, `None` without one), `memory_share` (most of a device's memory taken),
        `transfers` (messages in a step).

    Raises:
        SegueError: if a planner or device is unknown, or `evaluations` < 1.
    """
    expanded = expand(names, clock.topology)
    # The first price includes compiling the scheduler, which is no planner's doing.
    clock.step_time(np.zeros(clock.graph.num_ops, np.int64))
    candidates = [
        *(plan(name, clock, seed=seed, evaluations=evaluations) for name in expanded),
        *plans,
    ]
    candidates.sort(key=lambda candidate: (candidate.overflow_bytes, candidate.value_s))
    manual = next((candidate.value_s for candidate in candidates if _is_manual(candidate.planner)), None)
    return [_row(clock, candidate, manual, candidate is candidates[0]) for candidate in candidates]


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `compare` as one table, the winner marked; the title line says which clock timed them."""
    headers = (
        "planner",
        "step time (ms)",
        "vs best manual",
        "fullest memory",
        "transfers",
        "planning (s)",
        "evaluations",
        "",
    )
    lines = [
        (
            row["planner"],
            f"{1e3 * row['value']:.1f}",
            "-" if row["ratio"] is None else f"{row['ratio']:.3f}",
            f"{row['memory_share']:.0%}" + ("" if row["feasible"] else " does not fit"),
            row["transfers"],
            f"{row['planning_s']:.2f}",
            row["evaluations"],
            "<- fastest" if row["best"] else "",
        )
        for row in rows
    ]
    clocks = ", ".join(sorted({row["clock"] for row in rows}))
    return f"Step times are {clocks}.\n{format_table(lines, headers)}"


def _is_manual(name: str) -> bool:
    return name.partition(":")[0] in MANUAL


def _row(clock: SimulatedClock, candidate: Plan, manual: float | None, best: bool) -> Row:
    report = clock.step(Placement(candidate.devices, clock.microbatches))
    _, trace = clock.trace(candidate.devices)
    return {
        "planner": candidate.planner,
        "value": candidate.value_s,
        "feasible": candidate.feasible,
        "clock": report.source,
        "planning_s": candidate.planning_s,
        "evaluations": candidate.evaluations,
        "best": best,
        "ratio": None if manual is None else candidate.value_s / manual,
        "memory_share": float(np.max(report.peak_bytes / report.capacity_bytes)),
        "transfers": int((trace.message_start >= 0).sum()),
    }
