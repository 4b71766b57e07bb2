"""The run page: `report.html`, all in one file, and `step_time.png`."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..placement.clock import Span
from ..placement.files import write_bytes, write_text
from .figures import run_figure, timeline_figure
from .record import RunRecord
from .tables import cell_text, is_number

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222831; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.kind { color: #6b7580; margin-top: .2rem; } img { max-width: 100%; }
table { border-collapse: collapse; font-size: .9rem; } td, th { padding: .25rem .8rem .25rem 0; text-align: left;
vertical-align: top; border-bottom: 1px solid #e3e7eb; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
"""


def write_report(run_dir: Path, record: RunRecord) -> None:
    """Write `report.html` (needs no other file) and `step_time.png` into a run folder."""
    picture = run_figure(record)
    write_bytes(run_dir / "step_time.png", picture)
    write_text(run_dir / "report.html", _page(record, picture))


def _page(record: RunRecord, picture: bytes) -> str:
    parts = [
        f"<h1>{escape(record.title)}</h1>",
        f'<p class="kind">{escape(_kind_line(record))}</p>',
        _image(picture, "Step time over steps, placement before and after, and how busy each device is"),
        "<h2>Figures</h2>",
        _table(["", ""], [[name, value] for name, value in record.summary.items()]),
        "<h2>Events</h2>",
        _events(record),
        "<h2>Decisions</h2>",
        _decisions(record.decisions),
    ]
    timelines = _timelines(record)
    if timelines:
        names = [device.name for device in record.topology.devices]
        explanation = "Pale bars are forward passes, full ones backward passes, dark ones optimizer updates."
        parts += [
            "<h2>One step at the end of the run</h2>",
            f"<p>{explanation}</p>",
            _image(timeline_figure(timelines, names), "What each device does during a step"),
        ]
    title = escape(f"{record.title} ({record.device_kind})")
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _kind_line(record: RunRecord) -> str:
    meaning = {
        "emulated": "the training is real, the devices' pace, links and memory are declared",
        "measured": "step times of the devices themselves",
        "simulated": "step times that the simulator expects; nothing ran",
    }
    return f"Device kind: {record.device_kind} ({meaning.get(record.device_kind, 'as declared in the topology')})."


def _timelines(record: RunRecord) -> dict[str, Sequence[Span]]:
    named = {"Predicted (simulated)": record.predicted, f"Measured ({record.device_kind})": record.measured}
    return {title: spans for title, spans in named.items() if spans}


def _events(record: RunRecord) -> str:
    if not record.events:
        return "<p>No move and no slow-down.</p>"
    rows = [[number, event.step, event.kind, event.label] for number, event in enumerate(record.events, start=1)]
    return _table(["number", "before step", "kind", "what"], rows)


def _decisions(decisions: Sequence[Mapping[str, Any]]) -> str:
    if not decisions:
        return "<p>The placement was never reconsidered.</p>"
    columns = list(dict.fromkeys(name for decision in decisions for name in decision))
    rows = [[decision.get(column) for column in columns] for decision in decisions]
    return _table([column.replace("_", " ") for column in columns], rows)


def _table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{escape(header)}</th>" for header in headers)
    body = "\n".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if any(headers) else ''}\n{body}</table>"


def _cell(cell: Any) -> str:
    opening = '<td class="number">' if is_number(cell) else "<td>"
    return f"{opening}{escape(cell_text(cell))}</td>"


def _image(png: bytes, description: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{data}">'
