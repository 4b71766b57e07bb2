"""The figures of a run page, drawn with matplotlib."""

import io
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..placement.clock import Span
from .record import Event, RunRecord

INK, FAINT, ALERT, MOVE = "#222831", "#9aa3ad", "#c0392b", "#2f6f4f"
DEVICE_COLOURS = ("#4477aa", "#ee8866", "#44bb99", "#ddaa33", "#aa3377", "#77aadd", "#999933", "#bbbbbb")
KIND_COLOURS = {"manual": FAINT, "data-parallel": "#c7b299", "planner": "#4477aa", "agent": "#ee7733"}
WINDOW = 7


def run_figure(record: RunRecord) -> bytes:
    """PNG: step time over steps, where every op sits before and after, and how busy each device is."""
    colours = device_colours(record.topology.num_devices)
    busy_rows = 0.34 * record.topology.num_devices + 0.5
    figure = Figure(figsize=(10.5, 5.6 + busy_rows), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, height_ratios=[3.4, 1.0, busy_rows])
    _step_times(top, record)
    _placements(middle, record, colours)
    _busy(bottom, record, colours)
    names = [device.name for device in record.topology.devices]
    handles = [Patch(color=colour, label=name) for colour, name in zip(colours, names, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(8, len(names)), frameon=False)
    return _png(figure)


def timeline_figure(timelines: dict[str, Sequence[Span]], device_names: Sequence[str]) -> bytes:
    """PNG: what each device does during a step, one panel a timeline, all on the same time axis."""
    colours = device_colours(len(device_names))
    height = len(timelines) * (0.3 * len(device_names) + 0.6) + 0.4
    figure = Figure(figsize=(10.5, height), layout="constrained")
    panels = figure.subplots(len(timelines), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (title, spans) in zip(panels, timelines.items(), strict=True):
        _gantt(axes, title, spans, device_names, colours)
    panels[-1].set_xlabel("seconds from the start of the step")
    return _png(figure)


def comparison_figure(
    title: str,
    axis: str,
    bars: Sequence[tuple[str, str, float, bool]],
    timelines: dict[str, Sequence[Span]],
    device_names: Sequence[str],
) -> bytes:
    """PNG: a bar for every way to run a model, below them what the devices do in a step of some of them.

    Args:
        title: of the picture.
        axis: what the bars' length is, with its unit and the clock it comes from.
        bars: name, kind (a key of `KIND_COLOURS`), value, and whether it is feasible; drawn from the top.
        timelines: title -> bars of one step, seconds.
        device_names: lanes of the timelines.
    """
    panel = 0.26 * len(device_names) + 0.7
    heights = [0.24 * len(bars) + 0.9, *(panel for _ in timelines)]
    figure = Figure(figsize=(10.5, sum(heights) + 0.6), layout="constrained")
    top, *panels = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _contender_bars(top, bars)
    top.set_xlabel(axis)
    top.set_title(title, loc="left", fontweight="bold")
    end = max((span.end_s for spans in timelines.values() for span in spans), default=1.0)
    for axes, (name, spans) in zip(panels, timelines.items(), strict=True):
        _gantt(axes, name, spans, device_names, device_colours(len(device_names)))
        axes.set_xlim(0, 1.01 * end)
    if panels:
        panels[-1].set_xlabel("seconds from the start of the step (pale: forward, full: backward, black: update)")
    return _png(figure)


def _contender_bars(axes: Axes, bars: Sequence[tuple[str, str, float, bool]]) -> None:
    """Bars to scale but for those far beyond the rest, which are cut off; every bar's value stands beside it."""
    values = np.array([value for _, _, value, _ in bars])
    feasible = np.array([good for *_, good in bars])
    basis = values[feasible] if feasible.any() else values
    limit = min(float(values.max()), max(2.5 * float(np.median(basis)), 1.5 * float(basis.min())))
    for place, (_, kind, value, good) in enumerate(bars):
        face, hatch = (KIND_COLOURS[kind], "") if good else ("white", "////")
        axes.barh(place, min(value, limit), height=0.72, facecolor=face, edgecolor=KIND_COLOURS[kind], hatch=hatch)
        notes = ["" if good else "does not fit", "cut off" if value > limit else ""]
        text = ", ".join([f"{value:.4g}", *filter(None, notes)])
        axes.text(min(value, limit) + 0.008 * limit, place, text, va="center", fontsize=8, color=INK)
    axes.set_yticks(range(len(bars)), [name for name, *_ in bars], fontsize=9)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(0, 1.25 * limit)
    kinds = dict.fromkeys(kind for _, kind, _, _ in bars)
    handles = [Patch(color=KIND_COLOURS[kind], label=kind) for kind in kinds]
    if not feasible.all():
        handles.append(Patch(facecolor="white", edgecolor=FAINT, hatch="////", label="does not fit"))
    axes.legend(handles=handles, loc="upper right", fontsize=9, framealpha=0.9, edgecolor="none")
    _plain(axes)


def device_colours(count: int) -> list[Any]:
    """A colour for each device."""
    if count <= len(DEVICE_COLOURS):
        return list(DEVICE_COLOURS[:count])
    return list(colormaps["turbo"](np.linspace(0.05, 0.95, count)))


def _step_times(axes: Axes, record: RunRecord) -> None:
    seconds = np.asarray(record.step_times_s, float)
    unit, factor = ("ms", 1e3) if np.median(seconds) < 1 else ("s", 1.0)
    values = seconds * factor
    steps = np.arange(len(values))
    typical = rolling_median(values, [event.step for event in record.events])
    # The first steps of a run can take many times a normal one; they are counted, not drawn to scale.
    top = 1.3 * max(float(typical.max()), float(np.percentile(values, 90)))
    above = values > top
    axes.plot(steps[~above], values[~above], ".", color=FAINT, markersize=4, label="step")
    axes.plot(steps[above], np.full(above.sum(), 0.985 * top), "^", color=FAINT, markersize=4)
    axes.plot(steps, typical, color=INK, linewidth=1.8, label=f"median of {WINDOW} steps")
    axes.set_ylim(0, top)
    axes.set_xlim(-0.5, len(values) - 0.5)
    _mark_events(axes, record.events, len(values))
    axes.set_xlabel(f"step ({above.sum()} beyond the axis)" if above.any() else "step")
    axes.set_ylabel(f"step time ({unit}, {record.device_kind})")
    axes.legend(loc="lower left", ncols=2, fontsize=9, framealpha=0.9, edgecolor="none")
    axes.set_title(f"{record.title} ({record.device_kind} devices)", loc="left", fontweight="bold", pad=32)
    _plain(axes)


def rolling_median(values: np.ndarray, breaks: Sequence[int]) -> np.ndarray:
    """Centred median of `WINDOW` values, never across a break: medians before and after a move do not mix."""
    result = np.empty(len(values))
    bounds = sorted({0, len(values), *(step for step in breaks if 0 < step < len(values))})
    for start, end in pairwise(bounds):
        for step in range(start, end):
            low = max(start, min(step - WINDOW // 2, end - WINDOW))
            result[step] = np.median(values[low : min(end, low + WINDOW)])
    return result


def _mark_events(axes: Axes, events: Sequence[Event], steps: int) -> None:
    """A numbered line at each event; the text too of a slow-down (what a move was, the decisions list says)."""
    transform = axes.get_xaxis_transform()
    raised = False
    for number, event in enumerate(events, start=1):
        slow, x = event.kind == "slow", event.step - 0.5
        colour = ALERT if slow else MOVE
        # Numbers of events that are close to each other stand on two levels.
        raised = not raised and number > 1 and event.step - events[number - 2].step < 0.02 * steps
        axes.axvline(x, color=colour, linewidth=1.2, linestyle="--" if slow else "-", alpha=0.8)
        badge = {"boxstyle": "circle,pad=0.22", "facecolor": colour, "edgecolor": "none"}
        height = 1.1 if raised else 1.035
        axes.text(x, height, str(number), transform=transform, ha="center", fontsize=8, color="white", bbox=badge)
        if slow:
            side = "left" if event.step < 0.7 * steps else "right"
            paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
            label = f" {event.label} "
            axes.text(x, 0.965, label, transform=transform, ha=side, va="top", fontsize=9, color=colour, bbox=paper)


def _placements(axes: Axes, record: RunRecord, colours: list[Any]) -> None:
    before, after = record.before.devices, record.after.devices
    moved = before != after
    strips = np.stack([before, after])
    axes.imshow(
        strips, aspect="auto", interpolation="nearest", cmap=ListedColormap(colours), vmin=-0.5, vmax=len(colours) - 0.5
    )
    axes.axhline(0.5, color="white", linewidth=4)
    axes.set_yticks([0, 1], ["before", "after"])
    axes.set_xlabel(f"{len(before)} ops in topological order")
    axes.set_title(f"Where each op runs: {moved.mean():.0%} of ops are on another device", loc="left", fontsize=10)
    _plain(axes)
    axes.tick_params(length=0)


def _busy(axes: Axes, record: RunRecord, colours: list[Any]) -> None:
    positions = np.arange(record.topology.num_devices)
    pale = [tuple(1 - 0.45 * (1 - part) for part in to_rgb(colour)) for colour in colours]
    for shares, offset, shade, name in (
        (record.busy_before, -0.19, pale, "before"),
        (record.busy_after, 0.19, colours, "after"),
    ):
        percent = 100 * np.asarray(shares, float)
        axes.barh(positions + offset, percent, height=0.36, color=shade)
        for position, value in zip(positions + offset, percent, strict=True):
            axes.text(value + 0.8, position, f"{name} {value:.0f} %", va="center", fontsize=8, color=INK)
    labels = [f"{device.name} (speed {device.speed:g})" for device in record.topology.devices]
    axes.set_yticks(positions, labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 112)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("share of the step that the device computes (%)")
    axes.set_title(f"How busy each device is ({record.device_kind})", loc="left", fontsize=10)
    _plain(axes)


def _gantt(axes: Axes, title: str, spans: Sequence[Span], names: Sequence[str], colours: list[Any]) -> None:
    for position, (name, colour) in enumerate(zip(names, colours, strict=True)):
        for letter, strength in (("F", 0.5), ("B", 1.0), ("u", 0.0)):
            bars = [(s.start_s, s.end_s - s.start_s) for s in spans if s.lane == name and s.name.startswith(letter)]
            shade = tuple(1 - strength * (1 - part) for part in to_rgb(colour)) if strength else INK
            axes.broken_barh(bars, (position - 0.38, 0.76), facecolors=shade, edgecolor="white", linewidth=0.3)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_title(title, loc="left", fontsize=10)
    _plain(axes)


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
