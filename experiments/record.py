"""`RunRecord`: what a run page is drawn from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..placement.clock import Span
from ..placement.graph import Graph
from ..placement.placement import Placement
from ..placement.topology import Topology


class Event(NamedTuple):
    """Something that happened before a step: `kind` is `move` (a placement applied or taken back) or `slow`."""

    step: int
    label: str
    kind: str = "move"


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A finished or stopped run.

    Attributes:
        title: what was trained where, such as `inception on emulated-4`.
        device_kind: `emulated`, `measured` or `simulated`; every figure says it.
        step_times_s: seconds of every step, in order; at least one.
        events: moves and slow-downs, in order.
        graph: the model's graph.
        topology: the devices.
        before: placement that the run started with.
        after: placement that it ended with.
        busy_before: share of a step that each device computes at the start, `float64[d]`, 0 to 1.
        busy_after: the same at the end.
        summary: figures for the page's table, name -> value.
        decisions: what the agent decided, each a row of the decisions list.
        predicted: timeline of a step as the simulator expects it.
        measured: timeline of a step as it ran.
    """

    title: str
    device_kind: str
    step_times_s: Sequence[float]
    events: Sequence[Event]
    graph: Graph
    topology: Topology
    before: Placement
    after: Placement
    busy_before: NDArray[np.float64]
    busy_after: NDArray[np.float64]
    summary: Mapping[str, Any]
    decisions: Sequence[Mapping[str, Any]] = ()
    predicted: Sequence[Span] = ()
    measured: Sequence[Span] = ()
