"""Manual configurations: the splits that people write down, or get from a tool that counts layers or bytes."""

from collections.abc import Callable

import numpy as np

from ..clock import SimulatedClock
from ..graph import Graph
from .plan import Devices, Floats, at_leaders
from .split import balanced


def single(clock: SimulatedClock, device: int) -> Devices:
    """Everything on one device: what there is to do without any placement."""
    return np.full(clock.graph.num_ops, device, np.int64)


def round_robin(clock: SimulatedClock, rng: np.random.Generator) -> Devices:
    """Ops dealt out one by one, as TensorFlow's `replica_device_setter` deals out variables."""
    del rng
    return np.arange(clock.graph.num_ops) % clock.topology.num_devices


def random_devices(clock: SimulatedClock, rng: np.random.Generator) -> Devices:
    """A device for every op, drawn uniformly: the control that any planner should beat."""
    return rng.integers(clock.topology.num_devices, size=clock.graph.num_ops)


def equal_layers(clock: SimulatedClock, rng: np.random.Generator) -> Devices:
    """Contiguous, an equal number of layers (leaf modules with parameters) per device, the way people split by hand.

    It is also DeepSpeed's `uniform` partition (Rasley et al., KDD 2020). Ops without parameters follow the layer before
    them; a graph without modules is cut into equal numbers of ops.
    """
    del rng
    layer = layers(clock.graph)
    count = int(layer.max()) + 1
    if count == 1:
        layer, count = np.arange(clock.graph.num_ops), clock.graph.num_ops
    return layer * clock.topology.num_devices // max(count, clock.topology.num_devices)


def equal_parameters(clock: SimulatedClock, rng: np.random.Generator) -> Devices:
    """Contiguous, parameter bytes balanced: DeepSpeed's `parameters` partition (Rasley et al., KDD 2020)."""
    del rng
    return _balanced_or_by_count(clock, clock.graph.parameter_bytes)


def equal_time(clock: SimulatedClock, rng: np.random.Generator) -> Devices:
    """Contiguous, compute time balanced as if all devices were equally fast.

    As torchgpipe's `balance_by_time` does (Kim et al., "torchgpipe", arXiv:2004.09910, 2020).
    """
    del rng
    return _balanced_or_by_count(clock, _finite_seconds(clock).mean(axis=1))


def speed_proportional(clock: SimulatedClock, rng: np.random.Generator) -> Devices:
    """Contiguous, compute time in proportion to the devices' speed: every device computes for the same time.

    What people write down who know that their devices are unequal; the slowest run is the fastest possible, found
    exactly, but transfers and memory do not count.
    """
    del rng
    return speed_split(clock, np.arange(clock.topology.num_devices))


def speed_split(clock: SimulatedClock, order: Devices) -> Devices:
    """The contiguous split over some devices, in that order, in which the slowest run's compute is fastest, `int64[n]`."""
    seconds, rows = clock.costs.forward_s + clock.costs.backward_s, clock.costs.device_class
    if not np.isfinite(seconds.sum()):
        seconds, rows = _finite_seconds(clock), np.arange(clock.topology.num_devices)
    return order[balanced(at_leaders(seconds, clock.graph).T, rows[order])]


def layers(graph: Graph) -> Devices:
    """The layer of every op, `int64[n]`: counts up at the first op of each module that has parameters of its own."""
    with_parameters = {m for m, size in zip(graph.modules, graph.parameter_bytes, strict=True) if m and size > 0}
    seen: set[str] = set()
    result = np.zeros(graph.num_ops, np.int64)
    for op, module in enumerate(graph.modules):
        if module in with_parameters:
            seen.add(module)
        result[op] = max(0, len(seen) - 1)
    return result


def compute_seconds(clock: SimulatedClock) -> Floats:
    """Forward and backward seconds of every op on every device, `float64[n, d]`; infinite where it cannot run."""
    return clock.costs.on_devices(clock.costs.forward_s + clock.costs.backward_s)


def _finite_seconds(clock: SimulatedClock) -> Floats:
    """`compute_seconds`, where an op cannot run the mean of where it can."""
    seconds = compute_seconds(clock)
    possible = np.isfinite(seconds)
    mean = np.where(possible, seconds, 0.0).sum(axis=1) / np.maximum(1, possible.sum(axis=1))
    return np.where(possible, seconds, mean[:, None])


def _balanced_or_by_count(clock: SimulatedClock, weights: Floats) -> Devices:
    if not weights.any():
        weights = np.ones(clock.graph.num_ops)
    return balanced(at_leaders(weights, clock.graph)[None], np.zeros(clock.topology.num_devices, np.int64))


CONFIGURATIONS: dict[str, Callable[[SimulatedClock, np.random.Generator], Devices]] = {
    "round-robin": round_robin,
    "equal-layers": equal_layers,
    "equal-parameters": equal_parameters,
    "equal-time": equal_time,
    "speed-proportional": speed_proportional,
}
