"""Ways to use several devices that are no pipeline: `naive` and `data_parallel`, priced on the same costs as placements."""

from collections.abc import Sequence
from heapq import heapify, heapreplace
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .clock import SimulatedClock, StepReport, sum_by
from .errors import SegueError
from .topology import Topology

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SHARES = ("equal", "speed")
BUCKET_BYTES = 25 * 2.0**20
# With more devices than this, only the fastest one, two, three and so on are tried instead of every subset.
MOST_FOR_SUBSETS = 8


def naive(clock: SimulatedClock, devices: Ints) -> StepReport:
    """One step of a placement run one op at a time, as accelerate's hooks run a `device_map`.

    The whole batch passes through the ops in order, forward and then backward, without microbatches; a value that is
    needed on another device is carried there (once for each device), and its gradient back, while everything waits; then
    each device's parameters are updated, one device after the other. (`device_map` models in Hugging Face's "Big Model
    Inference" guide: at any time only one device works.) A run of consecutive ops on one device counts as one instruction
    of the device's `overhead_s` in each pass.

    Args:
        clock: graph, topology, costs and batch; its microbatches are put together again.
        devices: device of every op, `int64[n]`.

    Returns:
        A simulated step; `peak_bytes` are state and all that the backward pass of the whole batch needs, with the copies of
        values that came from other devices.
    """
    graph, topology, costs = clock.graph, clock.topology, clock.costs
    count, ops = topology.num_devices, np.arange(graph.num_ops)
    batch = sum(clock.sizes) / clock.sizes[0]
    compute = batch * (costs.on_devices(costs.forward_s) + costs.on_devices(costs.backward_s))
    seconds = (compute + costs.on_devices(costs.update_s))[ops, devices]
    run = np.cumsum(np.append(0, devices[1:] != devices[:-1]))
    passes = 1.0 + (np.bincount(run, graph.requires_grad) > 0)
    first = np.searchsorted(run, np.arange(run[-1] + 1))
    busy = sum_by(devices, seconds, count) + sum_by(devices[first], passes * costs.overhead_s[devices[first]], count)

    source, target, has_grad = _crossings(clock, devices)
    home, size = devices[source], batch * graph.output_bytes[source]
    there = _message_s(topology, home, target, size)
    back = has_grad * _message_s(topology, target, home, size)
    state = sum_by(devices, costs.state_bytes + batch * graph.saved_bytes, count)
    return StepReport(
        step_time_s=float(busy.sum() + there.sum() + back.sum()),
        busy_s=busy,
        transfer_s=sum_by(home, there, count) + sum_by(target, back, count),
        peak_bytes=state + sum_by(target, size, count),
        capacity_bytes=topology.memory_bytes,
        source="simulated",
    )


def data_parallel(clock: SimulatedClock, shares: str) -> StepReport:
    """One step of data-parallel training: every device holds the whole model and takes a share of the batch.

    A replica takes its share at once if that fits its memory, else in microbatches of the clock's size whose gradients add
    up before they are exchanged. Gradients are averaged by a ring all-reduce (Patarasu and Yuan, "Bandwidth optimal
    all-reduce algorithms for clusters of workstations", JPDC 69, 2009), 2 (d - 1) / d of their bytes over each link, in
    buckets of 25 MiB (Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", VLDB 2020).
    The ring goes from the first device on to the one that a bucket reaches soonest; its links are all in use at once, and
    those that share a channel take turns. The exchange begins when every replica is in the backward pass of its last
    microbatch, and overlaps it but for the last bucket, which waits for the slowest replica. Then every replica updates
    all parameters.

    It is not the same training where the model has batch normalisation: each replica normalises by the statistics of its
    own share. (Microbatches do that too, but with parts of another size.)

    Args:
        clock: graph, topology, costs and batch (`sum(clock.sizes)` samples).
        shares: `equal`, or `speed`: `batch_shares` says what they mean.

    Returns:
        A simulated step. Devices without a share are idle and hold nothing.

    Raises:
        SegueError: if `shares` is neither.
    """
    return _step(clock, batch_shares(clock, shares))


def batch_shares(clock: SimulatedClock, shares: str) -> Ints:
    """Samples of each device in `data_parallel`, `int64[d]`, `sum(clock.sizes)` together.

    `equal` gives every device the same number, one more to the first ones if it does not come out even. `speed` gives
    whole samples so that the slowest replica is done as early as possible, which is in proportion to the devices' speed on
    this graph as nearly as whole numbers go. It may leave devices out, if the step is shorter or fits memory only then:
    every subset is tried of up to eight devices, the fastest one, two, three and so on of more.

    Raises:
        SegueError: if `shares` is neither.
    """
    count, batch = clock.topology.num_devices, sum(clock.sizes)
    if shares not in SHARES:
        raise SegueError(f"shares {shares!r}: no such shares; known: {', '.join(SHARES)}")
    if shares == "equal":
        return batch // count + (np.arange(count) < batch % count)
    candidates = [_by_speed(clock, used) for used in _subsets(_seconds_per_sample(clock), batch)]
    return min(candidates, key=lambda candidate: _rank(_step(clock, candidate)))


def _rank(report: StepReport) -> tuple[float, float]:
    return float(report.overflow_bytes.max()), report.step_time_s


def _seconds_per_sample(clock: SimulatedClock) -> Floats:
    """Forward and backward seconds of the whole graph on each device, `float64[d]`."""
    return (_total(clock, clock.costs.forward_s) + _total(clock, clock.costs.backward_s)) / clock.sizes[0]


def _total(clock: SimulatedClock, seconds: Floats) -> Floats:
    """Seconds of all ops on each device, `float64[d]`, from those on each class of devices."""
    return clock.costs.on_devices(seconds.sum(axis=0, keepdims=True))[0]


def _subsets(seconds: Floats, batch: int) -> list[list[int]]:
    """Sets of devices to share the batch; each gets at least a sample."""
    fastest = np.argsort(seconds, kind="stable").tolist()
    usable = [device for device in fastest if np.isfinite(seconds[device])] or fastest[:1]
    sizes = range(1, min(len(usable), batch) + 1)
    if len(usable) > MOST_FOR_SUBSETS:
        return [sorted(usable[:size]) for size in sizes]
    return [list(used) for size in sizes for used in combinations(sorted(usable), size)]


def _by_speed(clock: SimulatedClock, used: Sequence[int]) -> Ints:
    """Whole samples for the devices used, the slowest of them done as early as possible: each to who is done first."""
    per_sample, overhead = _seconds_per_sample(clock), 2 * clock.costs.overhead_s
    shares = np.zeros(clock.topology.num_devices, np.int64)
    shares[list(used)] = 1
    done = [(2 * per_sample[device] + overhead[device], device) for device in used]
    heapify(done)
    for _ in range(sum(clock.sizes) - len(used)):
        _, device = done[0]
        shares[device] += 1
        heapreplace(done, ((shares[device] + 1) * per_sample[device] + overhead[device], device))
    return shares


def _step(clock: SimulatedClock, shares: Ints) -> StepReport:
    """The step of `data_parallel` with given numbers of samples."""
    topology, gradients = clock.topology, float(clock.graph.parameter_bytes.sum())
    used = np.flatnonzero(shares)
    replicas = _replicas(clock, used, shares[used])
    ring = _ring(topology, used)
    full, rest = divmod(gradients, BUCKET_BYTES)
    buckets = [(BUCKET_BYTES, full), (rest, float(rest > 0))]
    exchange = sum(times * _all_reduce_s(topology, ring, size) for size, times in buckets)
    last = _all_reduce_s(topology, ring, rest or min(gradients, BUCKET_BYTES))
    exchanged = max(replicas.last_begins.max() + exchange, replicas.compute.max() + last)
    busy, transfer, peak = (np.zeros(topology.num_devices) for _ in range(3))
    busy[used], peak[used] = replicas.compute + replicas.update, replicas.peak
    for size, times in buckets:
        message = _message_s(topology, ring, np.roll(ring, -1), size / len(ring))
        transfer[ring] += times * 2 * (len(ring) - 1) * message
    return StepReport(
        step_time_s=float(exchanged + replicas.update.max()),
        busy_s=busy,
        transfer_s=transfer,
        peak_bytes=peak,
        capacity_bytes=topology.memory_bytes,
        source="simulated",
    )


class _Replicas(NamedTuple):
    """Of each replica: seconds of all forward and backward, until the last microbatch's backward, of the update; bytes."""

    compute: Floats
    last_begins: Floats
    update: Floats
    peak: Floats


def _replicas(clock: SimulatedClock, used: Ints, samples: Ints) -> _Replicas:
    graph, costs, micro = clock.graph, clock.costs, clock.sizes[0]
    forward, backward, update = (
        _total(clock, seconds)[used] for seconds in (costs.forward_s, costs.backward_s, costs.update_s)
    )
    overhead = costs.overhead_s[used]
    state, saved = costs.state_bytes.sum(), graph.saved_bytes.sum() / micro
    at_once = state + saved * samples <= clock.topology.memory_bytes[used]
    part = np.where(at_once, samples, np.minimum(samples, micro))
    parts = -(-samples // part)
    last = samples - (parts - 1) * part
    compute = (forward + backward) / micro * samples + (1 + graph.requires_grad.any()) * overhead * parts
    last_begins = np.full(len(used), np.inf)
    np.subtract(compute, backward / micro * last, out=last_begins, where=np.isfinite(compute))
    return _Replicas(compute, last_begins, update, state + saved * part)


def _ring(topology: Topology, used: Ints) -> Ints:
    """The devices used, each followed by the nearest that is left: a bucket's chunk gets there soonest."""
    ring, left = [int(used[0])], used[1:]
    while left.size:
        nearest = int(np.argmin(_message_s(topology, ring[-1], left, BUCKET_BYTES / len(used))))
        ring.append(int(left[nearest]))
        left = np.delete(left, nearest)
    return np.array(ring)


def _all_reduce_s(topology: Topology, ring: Ints, size: float) -> float:
    """Seconds to add up `size` bytes around a ring: 2 (d - 1) rounds in which every link carries a d-th of them."""
    if len(ring) == 1 or not size:
        return 0.0
    following = np.roll(ring, -1)
    seconds = _message_s(topology, ring, following, size / len(ring))
    start, channel_of = topology.channels
    taken: dict[int, float] = {}
    for link, message in zip(ring * topology.num_devices + following, seconds.tolist(), strict=True):
        for channel in channel_of[start[link] : start[link + 1]].tolist():
            taken[channel] = taken.get(channel, 0.0) + message
    return 2 * (len(ring) - 1) * max(taken.values())


def _message_s(topology: Topology, source: Ints | int, target: Ints, size: Floats | float) -> Floats:
    """Seconds that messages of `size` bytes take on the links from `source` to `target`."""
    return topology.latency_s[source, target] + size * topology.seconds_per_byte[source, target]


def _crossings(clock: SimulatedClock, devices: Ints) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """Values needed on other devices, once for each: the op, the device, and whether a gradient comes back."""
    graph = clock.graph
    source, reader = graph.edges[devices[graph.edges[:, 0]] != devices[graph.edges[:, 1]]].T
    has_grad = graph.requires_grad[source] & graph.requires_grad[reader]
    key, inverse = np.unique(source * clock.topology.num_devices + devices[reader], return_inverse=True)
    any_grad = sum_by(inverse, has_grad.astype(float), len(key)) > 0
    return key // clock.topology.num_devices, key % clock.topology.num_devices, any_grad
