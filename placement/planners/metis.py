"""`metis`: balanced parts with few bytes between them."""

from itertools import islice, permutations
from typing import NamedTuple

import numpy as np

from ..clock import SimulatedClock, sum_by
from ..errors import SegueError
from .manual import compute_seconds
from .plan import Devices, Evaluator, Floats, at_leaders, leaders

# METIS takes whole numbers, and the narrowest of its builds adds them up in 32 bits.
MOST_WEIGHT = 2**30
MEMORY_WEIGHTS = (0.0, 0.5, 1.0)
SEEDS = 4
MOST_ORDERS = 24
# Devices slower than this share of the fastest have no part.
SLOWEST = 1e-3


def metis(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """Multilevel graph partitioning by METIS (Karypis and Kumar, SIAM J. Sci. Comput. 20(1), 1998), through pymetis.

    Vertices are ops, or whole colocation groups, weighted with their forward and backward seconds; edges with the bytes
    that cross them in both passes. Each device is to have its share of the weight in proportion to its speed on this
    graph. METIS does not see the edges' direction. It balances one weight (pymetis passes on no more), so if what it finds
    does not fit memory, bytes of parameters and activations take the place of half, then of all of the seconds, and
    capacities that of speeds. Several seeds, every order of the parts on up to four devices, and doing without the slowest
    device are priced. What takes longer on its device than the whole graph where it is fastest, because the device cannot
    run it, is moved.

    Raises:
        SegueError: if pymetis is not installed.
    """
    problems = [_problem(evaluator.clock, left_out) for left_out in range(min(2, evaluator.clock.topology.num_devices))]
    for memory_weight in MEMORY_WEIGHTS:
        overflows = [_try(evaluator, problem, memory_weight, rng) for problem in problems for _ in range(SEEDS)]
        if not min(overflows):
            return


def _try(evaluator: Evaluator, problem: "_Problem", memory_weight: float, rng: np.random.Generator) -> float:
    """Price one partition, its parts on the devices in several orders; returns the least overflow in bytes."""
    overflow = np.inf
    parts = _partition(problem, memory_weight, int(rng.integers(2**31 - 1)))
    orders = permutations(problem.candidates)
    for order in islice(orders, MOST_ORDERS if len(problem.candidates) <= 4 else 1):
        if not evaluator.left:
            return 0.0
        devices = np.array(order, np.int64)[parts]
        stuck = problem.seconds_on[np.arange(len(parts)), devices] > problem.total_s
        devices = np.where(stuck, problem.seconds_on.argmin(axis=1), devices)
        overflow = min(overflow, evaluator(devices[problem.vertex_of])[0])
    return overflow


class _Problem(NamedTuple):
    """What METIS is given: an undirected graph in compressed rows, weights, and the devices in parts' order.

    `vertex_of` maps ops to vertices; `seconds_on` are those of each vertex on each device, `total_s` those of all where
    they are fastest; `seconds`, `held` are each vertex's shares of the whole; `speed`, `room` each candidate device's.
    """

    vertex_of: Devices
    seconds_on: Floats
    total_s: float
    start: Devices
    neighbours: Devices
    edge_weights: Devices
    seconds: Floats
    held: Floats
    candidates: list[int]
    speed: Floats
    room: Floats


def _problem(clock: SimulatedClock, left_out: int) -> _Problem:
    """The problem without so many of the slowest devices."""
    graph = clock.graph
    vertices, vertex_of = np.unique(leaders(graph), return_inverse=True)
    seconds = at_leaders(compute_seconds(clock), graph)[vertices]
    fastest = np.where(np.isfinite(seconds).any(axis=1), seconds.min(axis=1), 0.0)
    candidates, speed = _candidates(seconds, fastest, left_out)
    held = clock.costs.state_bytes + graph.saved_bytes * min(clock.microbatches, len(candidates))

    ends = vertex_of[graph.edges]
    weight = (graph.output_bytes * (1.0 + graph.requires_grad))[graph.edges[:, 0]]
    between = ends[:, 0] != ends[:, 1]
    both = np.concatenate([ends[between], ends[between][:, ::-1]])
    pairs, inverse = np.unique(both, axis=0, return_inverse=True)
    weights = sum_by(inverse.ravel(), np.tile(weight[between], 2), len(pairs))
    return _Problem(
        vertex_of=vertex_of,
        seconds_on=seconds,
        total_s=float(fastest.sum()),
        start=np.searchsorted(pairs[:, 0], np.arange(len(vertices) + 1)),
        neighbours=np.ascontiguousarray(pairs[:, 1]),
        edge_weights=np.maximum(1, _whole(_shares(weights))),
        seconds=_shares(fastest),
        held=_shares(at_leaders(held, graph)[vertices]),
        candidates=candidates,
        speed=_shares(speed),
        room=_shares(np.minimum(clock.topology.memory_bytes[candidates], held.sum())),
    )


def _candidates(seconds: Floats, fastest: Floats, left_out: int) -> tuple[list[int], Floats]:
    """Devices that are to have a part, in the given order, and their speeds.

    A device's speed is relative to the fastest for each vertex, in the mean over the seconds there; what a device cannot
    run, or hardly, does not count for it.
    """
    ratio = np.divide(fastest[:, None], seconds, out=np.ones_like(seconds), where=seconds > 0)
    speed = np.average(ratio, axis=0, weights=_shares(fastest))
    worth = int((speed > SLOWEST * speed.max()).sum())
    count = max(1, min(worth - left_out, seconds.shape[1], len(seconds)))
    candidates = np.sort(np.argsort(-speed, kind="stable")[:count])
    return candidates.tolist(), speed[candidates]


def _partition(problem: _Problem, memory_weight: float, seed: int) -> Devices:
    """Part of every vertex, `int64[v]`; part `i` is sized for `candidates[i]`."""
    try:
        import pymetis
    except ImportError as error:
        raise SegueError("planner 'metis': pymetis is missing; pip install 'segue[planners]'") from error
    if len(problem.candidates) == 1:
        return np.zeros(len(problem.seconds), np.int64)
    whole = pymetis.zero_copy_dtype()
    target = (1 - memory_weight) * problem.speed + memory_weight * problem.room
    found = pymetis.part_graph(
        len(problem.candidates),
        pymetis.CSRAdjacency(problem.start.astype(whole), problem.neighbours.astype(whole)),
        vweights=_whole((1 - memory_weight) * problem.seconds + memory_weight * problem.held).astype(whole),
        eweights=problem.edge_weights.astype(whole),
        tpwgts=(target / target.sum()).tolist(),
        options=pymetis.Options(seed=seed),
    )
    return np.array(found.vertex_part, np.int64)


def _shares(values: Floats) -> Floats:
    """Values over their sum; all the same where that is 0."""
    total = values.sum()
    return values / total if total > 0 else np.full(len(values), 1.0 / max(1, len(values)))


def _whole(shares: Floats) -> Devices:
    return np.rint(shares * MOST_WEIGHT).astype(np.int64)
