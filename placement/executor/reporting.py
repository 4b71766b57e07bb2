"""What the workers tell each other of a step, and the report made of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ..clock import SimulatedClock, StepReport
from ..first_messages import FirstMessages
from ..graph import Graph
from ..placement import Placement
from ..schedule import Schedule
from ..span import Span
from ..topology import Topology
from .runner import StepRecord


def table(row: Sequence[float]) -> np.ndarray:
    """A row of numbers from every worker, `float64[d, len(row)]`."""
    rows = torch.empty(dist.get_world_size(), len(row), dtype=torch.float64)
    dist.all_gather(list(rows), torch.tensor(row, dtype=torch.float64))
    return rows.numpy()


def row_of(record: StepRecord) -> list[float]:
    """What a worker tells of a step: its origin, seconds until its end, busy and in transfers, most bytes, first messages."""
    end = max((interval.end_s for interval in record.intervals), default=0.0)
    busy = sum(interval.end_s - interval.start_s for interval in record.intervals)
    return [record.origin, end, busy, record.transfer_s, record.peak_bytes, *record.first_messages.ravel()]


def step_report(
    rows: np.ndarray,
    topology: Topology,
    source: str,
    timeline: tuple[Span, ...],
    ran: tuple[SimulatedClock, Placement] | None,
) -> StepReport:
    """The report of a step from every worker's `row_of`; for the rest see `StepReport`."""
    (origins, ends, busy, transfer, peak), received = rows[:, :5].T, rows[:, 5:]
    messages = FirstMessages(*received.reshape(-1, 2, len(rows)).transpose(1, 2, 0))
    # On one host all read the same clock, and the step begins when the last worker is there.
    one_host = len({device.host for device in topology.devices}) == 1
    step_time = (origins + ends).max() - origins.max() if one_host else ends.max()
    return StepReport(
        step_time_s=float(step_time),
        busy_s=busy,
        transfer_s=transfer,
        peak_bytes=peak,
        capacity_bytes=topology.memory_bytes,
        source=source,
        timeline=timeline,
        ran=ran,
        first_messages=messages if source == "measured" else None,
    )


def gather_spans(record: StepRecord, schedule: Schedule, graph: Graph, device: str) -> tuple[Span, ...]:
    """Every worker's instructions, gathered; `device` is the name of this one's."""
    stages = schedule.stages
    spans = []
    for instruction, interval in zip(record.instructions, record.intervals, strict=True):
        if instruction.kind == "update":
            label = "update"
        else:
            op = graph.names[stages.ops[stages.op_start[instruction.stage]]]
            label = f"{'FB'[instruction.direction]}{instruction.micro} {op}"
        spans.append(Span(device, label, *interval))
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, spans)
    return tuple(sorted((s for part in everyone for s in part), key=lambda s: (s.start_s, s.lane, s.name)))
