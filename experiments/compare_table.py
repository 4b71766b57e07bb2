"""A comparison as people read it: the table, and one line of advice."""

from collections.abc import Sequence

import numpy as np

from .compare import DATA_PARALLEL, Comparison
from .contenders import Contender
from .measure import Measured
from .tables import format_table

VALUE_NAMES = {"step-time": "step time", "max-load": "max load", "latency": "latency"}
PLURALS = {"step-time": "Step times", "max-load": "Loads", "latency": "Latencies"}
SINGLE, SHOWN_SINGLES = "single:", 4


def comparison_table(comparison: Comparison, measured: Sequence[Measured | None] = ()) -> str:
    """All contenders as one table, the winner marked.

    Args:
        comparison: what to show; of many `single:<device>`, only the best few are.
        measured: what running each contender gave, in order, if that was tried.
    """
    rows = comparison.rows()
    what = VALUE_NAMES[comparison.objective]
    headers = [
        "planner",
        f"{what} (ms)",
        "vs best manual",
        "fullest memory",
        "transfers",
        "planning (s)",
        "evaluations",
    ]
    columns = [
        [contender.planner for contender in comparison.contenders],
        [_ms(contender.value_s) for contender in comparison.contenders],
        ["-" if row["ratio"] is None else f"{row['ratio']:.3f}" for row in rows],
        [_memory(contender) for contender in comparison.contenders],
        [contender.transfers for contender in comparison.contenders],
        [f"{contender.planning_s:.2f}" for contender in comparison.contenders],
        [contender.evaluations for contender in comparison.contenders],
    ]
    if any(contender.bound_s is not None for contender in comparison.contenders):
        headers.append("bound (ms)")
        columns.append([None if c.bound_s is None else _ms(c.bound_s) for c in comparison.contenders])
    if any(measured):
        source = next((entry.source for entry in measured if entry and entry.source), "measured")
        headers += [f"{source} (ms)", f"simulated / {source}"]
        columns.append([_measured(entry) for entry in measured])
        columns.append([f"{entry.ratio:.3f}" if entry and entry.step_times_s else None for entry in measured])
    headers.append("")
    columns.append([_mark(comparison, contender) for contender in comparison.contenders])
    lines = list(zip(*columns, strict=True))
    places = shown(comparison.contenders)
    table = format_table([lines[place] for place in places], headers)
    folded = len(lines) - len(places)
    sources = sorted({contender.source for contender in comparison.contenders if contender.available})
    title = f"{PLURALS[comparison.objective]} are {', '.join(sources) or 'not available'}."
    more = f"\n({folded} more {SINGLE}<device> rows, none faster than those shown)" if folded else ""
    return f"{title}\n{table}{more}"


def recommendation(comparison: Comparison) -> str:
    """One line: what to run, and plainly so where no split is worth it or nothing fits."""
    feasible = [contender for contender in comparison.contenders if contender.feasible]
    if not feasible:
        return _nothing_fits(comparison)
    best = feasible[0]
    splits = [contender for contender in feasible if contender.num_devices > 1]
    simple = [contender for contender in feasible if contender.kind == DATA_PARALLEL or contender.num_devices == 1]
    if not splits:
        return (
            f"Recommendation: {_named(best)}, {_text(best.value_s)}; there is no split over several devices that fits."
        )
    if simple and simple[0].value_s <= splits[0].value_s:
        other = f"{_text(simple[0].value_s)} against {_text(splits[0].value_s)} ({splits[0].planner})"
        return f"Recommendation: {_named(simple[0])} would be faster than every split: {other}."
    line = f"Recommendation: {best.planner}, {_text(best.value_s)}"
    manual = comparison.best_manual
    if manual is not None and manual is not best:
        line += f"; the best manual configuration is {manual.planner}, {_text(manual.value_s)}"
    return line + "."


def _nothing_fits(comparison: Comparison) -> str:
    least = comparison.winner
    if not least.available:
        return "Nothing could be compared: no planner is available for this."
    return f"This fits nowhere: the closest is {least.planner}, which still overflows ({'; '.join(least.reasons)})."


def _named(contender: Contender) -> str:
    if contender.kind == DATA_PARALLEL:
        shares = contender.planner.partition(":")[2]
        return f"data parallel ({'equal shares' if shares == 'equal' else 'shares by speed'})"
    if contender.num_devices == 1 and not contender.planner.startswith(SINGLE):
        return f"a single device (as {contender.planner} found)"
    return contender.planner


def shown(contenders: Sequence[Contender]) -> list[int]:
    """Places of the rows to show: everything but the slower of many `single:<device>`."""
    singles = [place for place, contender in enumerate(contenders) if contender.planner.startswith(SINGLE)]
    hidden = set(singles[SHOWN_SINGLES:]) if len(singles) > SHOWN_SINGLES + 1 else set()
    return [place for place in range(len(contenders)) if place not in hidden]


def _memory(contender: Contender) -> str:
    if contender.reasons:
        more = len(contender.reasons) - 2
        return "; ".join(contender.reasons[:2]) + (f"; and {more} more" if more > 0 else "")
    name, share = contender.tightest
    return f"{name} {share:.0%}"


def _mark(comparison: Comparison, contender: Contender) -> str:
    if contender is not comparison.winner or not contender.available:
        return ""
    return "<- fastest" if contender.feasible else "<- overflows least"


def _measured(entry: Measured | None) -> str | None:
    if entry is None:
        return None
    return _ms(entry.median_s) if entry.step_times_s else entry.reason


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.4g}" if np.isfinite(seconds) else "-"


def _text(seconds: float) -> str:
    return f"{1e3 * seconds:.4g} ms"
