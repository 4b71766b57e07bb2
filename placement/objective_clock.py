"""The clock for each objective."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .clock import SimulatedClock
from .costs import Costs
from .errors import SegueError
from .graph import Graph
from .max_load import MaxLoadClock
from .topology import Topology

OBJECTIVES = ("step-time", "max-load", "latency")


def make_clock(
    graph: Graph, topology: Topology, costs: Costs, sizes: Sequence[int], objective: str = "step-time"
) -> SimulatedClock:
    """The clock whose `evaluate` gives what is to be minimised.

    Args:
        graph: ops with costs for one full microbatch.
        topology: devices and links.
        costs: of a training step.
        sizes: samples in each microbatch.
        objective: `step-time`, a whole training step; `max-load`, the busiest device's share of it; or `latency`, the
            forward pass of one microbatch, nothing kept for a backward.

    Raises:
        SegueError: if there is no such objective.
    """
    if objective == "step-time":
        return SimulatedClock(graph, topology, costs, sizes)
    if objective == "max-load":
        return MaxLoadClock(graph, topology, costs, sizes)
    if objective == "latency":
        return _latency_clock(graph, topology, costs, sizes[0])
    raise SegueError(f"objective {objective!r}: no such objective; known: {', '.join(OBJECTIVES)}")


def _latency_clock(graph: Graph, topology: Topology, costs: Costs, size: int) -> SimulatedClock:
    inference = replace(
        graph,
        requires_grad=np.zeros(graph.num_ops, bool),
        backward_flops=np.zeros(graph.num_ops),
        saved_bytes=np.zeros(graph.num_ops),
    )
    only_forward = replace(
        costs,
        backward_s=np.zeros_like(costs.backward_s),
        update_s=np.zeros_like(costs.update_s),
        working_bytes=np.zeros_like(costs.working_bytes),
        state_bytes=graph.parameter_bytes + graph.buffer_bytes,
    )
    return SimulatedClock(inference, topology, only_forward, (size,))
