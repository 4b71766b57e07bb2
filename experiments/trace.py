"""Timelines as Chrome trace JSON, for Perfetto (https://ui.perfetto.dev) and chrome://tracing."""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from ..placement.clock import Span
from ..placement.errors import SegueError
from ..placement.files import write_text

MICROSECONDS = 1e6


def write_trace(path: str | PathLike, spans: Sequence[Span], title: str) -> None:
    """Write one timeline: a track for each device and each link.

    Args:
        path: the file, `.json`.
        spans: the bars, in seconds.
        title: name of the trace's process.
    """
    write_traces(path, {title: spans})


def write_traces(path: str | PathLike, timelines: Mapping[str, Sequence[Span]]) -> None:
    """Write several timelines into one trace, a process each, such as predicted and measured.

    Args:
        path: the file, `.json`.
        timelines: title -> bars, in seconds.
    """
    events = [
        event
        for process, (title, spans) in enumerate(timelines.items(), start=1)
        for event in _process_events(process, title, spans)
    ]
    text = json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, allow_nan=False)
    write_text(path, text + "\n")


def read_traces(path: str | PathLike) -> dict[str, list[Span]]:
    """The timelines of a trace that `write_traces` wrote, by title.

    Raises:
        SegueError: if the file cannot be read or is no such trace.
    """
    try:
        events = json.loads(Path(path).read_text())["traceEvents"]
        titles = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
        lanes = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
        timelines: dict[str, list[Span]] = {title: [] for title in titles.values()}
        for event in events:
            if event["ph"] == "X":
                start, lane = event["ts"] / MICROSECONDS, lanes[event["pid"], event["tid"]]
                end = start + event["dur"] / MICROSECONDS
                timelines[titles[event["pid"]]].append(Span(lane, event["name"], start, end))
    except OSError as error:
        raise SegueError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SegueError(f"{path}: not a trace of segue: {error}") from error
    return timelines


def _process_events(process: int, title: str, spans: Sequence[Span]) -> list[dict[str, Any]]:
    threads = {lane: number for number, lane in enumerate(_lanes(spans), start=1)}
    events = [_metadata("process_name", process, 0, {"name": title})]
    events.append(_metadata("process_sort_index", process, 0, {"sort_index": process}))
    for lane, thread in threads.items():
        events.append(_metadata("thread_name", process, thread, {"name": lane}))
        events.append(_metadata("thread_sort_index", process, thread, {"sort_index": thread}))
    for span in sorted(spans, key=lambda span: span.start_s):
        events.append(
            {
                "name": span.name,
                "cat": "transfer" if _is_link(span.lane) else "compute",
                "ph": "X",
                "pid": process,
                "tid": threads[span.lane],
                "ts": round(span.start_s * MICROSECONDS, 3),
                "dur": round(max(0.0, span.end_s - span.start_s) * MICROSECONDS, 3),
            }
        )
    return events


def _lanes(spans: Sequence[Span]) -> list[str]:
    """Devices before links, each by name."""
    return sorted({span.lane for span in spans}, key=lambda lane: (_is_link(lane), lane))


def _is_link(lane: str) -> bool:
    return "->" in lane


def _metadata(kind: str, process: int, thread: int, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": arguments}
