"""`contiguous`: the best pipeline of consecutive ops, one run per device."""

from itertools import islice, permutations

import numpy as np

from ..clock import SimulatedClock
from ..errors import SegueError
from .manual import compute_seconds
from .plan import MEMORY_SHARES, Devices, Evaluator, Floats, at_leaders, leaders
from .split import Line, prefix_sums, split

MOST_ORDERS = 24
MOST_BYTES = 2**32
"""Of the table of what crosses each cut between each two devices."""


def contiguous(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """Exact dynamic program over contiguous splits of the topological order.

    It minimises the slowest run's seconds per microbatch, its own ops and what crosses the cut before it, over unequal
    devices and links: PipeDream's formulation (Narayanan et al., SOSP 2019) without replication. The devices take their
    runs in the order given and in other orders (all of them up to four devices), of which the clock is asked for the most
    promising first; it picks among the results. Splits are made to fit memory where any do.

    Raises:
        SegueError: if there are so many devices and ops that the costs of their cuts would not fit this machine's memory.
    """
    clock = evaluator.clock
    devices, ops = clock.topology.num_devices, clock.graph.num_ops
    nbytes = 8 * devices**2 * (ops + 1)
    if nbytes > MOST_BYTES:
        raise SegueError(
            f"planner 'contiguous': the costs of cutting {ops} ops between {devices} devices take {nbytes / 2**30:.1f} GiB, "
            f"more than the {MOST_BYTES / 2**30:.1f} that it may; use 'speed-proportional' or the agent"
        )
    given, *others = _orders(clock, rng)
    _price(evaluator, given, split(make_line(clock, given)))
    if not evaluator.left:
        return
    tries: list[tuple[float, Devices, tuple[float, Devices]]] = []
    for order in others:
        line = make_line(clock, order)
        found = split(line)
        tries.append((_estimate(line, *found, clock.microbatches), order, found))
    for _, order, found in sorted(tries, key=lambda each: each[0]):
        _price(evaluator, order, found)


def _estimate(line: Line, bottleneck: float, positions: Devices, microbatches: int) -> float:
    """Seconds of a step: one microbatch passes, the others follow at the pace of the slowest run; infinite if none fits."""
    if np.isinf(bottleneck):
        return np.inf
    starts = np.flatnonzero(np.diff(positions, prepend=-1))
    ends, own = np.append(starts[1:], len(positions)), positions[starts]
    passes = (line.seconds[own, ends] - line.seconds[own, starts] + line.fixed[own]).sum()
    passes += line.cross[own[:-1], own[1:], starts[1:]].sum()
    return float(np.nan_to_num(passes + (microbatches - 1) * bottleneck, nan=np.inf))


def _price(evaluator: Evaluator, order: Devices, found: tuple[float, Devices]) -> None:
    """Price the split of an order; what overflows is split again for less of the memory."""
    for share in MEMORY_SHARES:
        bottleneck, positions = found if share == 1.0 else split(make_line(evaluator.clock, order, share))
        if np.isfinite(bottleneck):
            if not evaluator.left:
                return
            overflow, _ = evaluator(order[positions])
            if not overflow:
                return


def make_line(clock: SimulatedClock, order: Devices, memory_share: float = 1.0) -> Line:
    """The clock's costs as a sequence of ops and devices, whole colocation groups at their first op.

    Args:
        clock: graph, topology and costs.
        order: devices in the order in which they take their runs, `int64[d]`.
        memory_share: how much of each device's memory its run may take. Activations are counted for as many microbatches
            as 1F1B keeps alive so far from the end.
    """
    graph, costs, topology = clock.graph, clock.costs, clock.topology
    seconds = costs.on_devices(costs.forward_s + costs.backward_s + costs.update_s / clock.microbatches)
    ahead = len(order) - np.arange(len(order)) + clock.run_ahead
    live = np.minimum(ahead, clock.microbatches)
    state, saved = at_leaders(costs.state_bytes, graph), at_leaders(graph.saved_bytes, graph)
    count, size = _crossing(clock, np.ones(graph.num_ops))
    grad_count, grad_size = _crossing(clock, graph.requires_grad.astype(float))
    latency = topology.latency_s[np.ix_(order, order)][..., None]
    per_byte = topology.seconds_per_byte[np.ix_(order, order)][..., None]
    forward = (count > 0) * latency + size * per_byte
    backward = (grad_count > 0) * latency.swapaxes(0, 1) + grad_size * per_byte.swapaxes(0, 1)
    return Line(
        seconds=prefix_sums(np.ascontiguousarray(at_leaders(seconds, graph)[:, order].T)),
        fixed=2 * topology.overhead_s[order],
        cross=forward + backward,
        held=prefix_sums(state + live[:, None] * saved),
        received=live[:, None] * size,
        capacity=memory_share * topology.memory_bytes[order],
    )


def _crossing(clock: SimulatedClock, travels: Floats) -> Floats:
    """How many values are needed on both sides of each cut, and their bytes, `float64[2, n + 1]`.

    Args:
        clock: whose graph is cut.
        travels: 1 for each op whose value counts, 0 for the others.
    """
    graph = clock.graph
    position = leaders(graph)
    first, last = position.copy(), position.copy()
    np.minimum.at(first, graph.edges[:, 0], position[graph.edges[:, 1]])
    np.maximum.at(last, graph.edges[:, 0], position[graph.edges[:, 1]])
    change = np.zeros((2, graph.num_ops + 2))
    for row, column in enumerate((travels, travels * graph.output_bytes)):
        np.add.at(change[row], first + 1, column)
        np.add.at(change[row], last + 1, -column)
    return np.maximum(np.cumsum(change, axis=1)[:, : graph.num_ops + 1], 0.0)


def _orders(clock: SimulatedClock, rng: np.random.Generator) -> list[Devices]:
    """Device orders to try, the given one first."""
    count = clock.topology.num_devices
    if count <= 4:
        return [np.array(order) for order in islice(permutations(range(count)), MOST_ORDERS)]
    fastest = np.argsort(compute_seconds(clock).sum(axis=0), kind="stable")
    orders = [np.arange(count), np.arange(count)[::-1], fastest, fastest[::-1]]
    return orders + [rng.permutation(count) for _ in range(MOST_ORDERS - len(orders))]
