"""`Costs`: what each op costs on each device, in seconds and bytes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import SegueError
from .files import check_fields, number, read_json, text, write_json
from .gpus import GPUS, Gpu
from .graph import Graph
from .topology import Topology

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
PROFILE_FORMAT = "segue.profile/1"
_SECONDS = ("forward_s", "backward_s", "update_s")

# What a reference core of the roofline does; only ratios between ops matter until something has been measured.
ROOFLINE_FLOPS_PER_S = 2e10
ROOFLINE_BYTES_PER_S = 5e9

# What kernels of a GPU get of its datasheet's peaks, and the seconds that launching one from Python takes.
ARITHMETIC_SHARE = 0.5
MEMORY_SHARE = 0.7
LAUNCH_S = 5e-6

# How far measured ratios between kinds of ops may bend another product's roofline: they carry over only in part.
MOST_BENT = 4.0


@dataclass(frozen=True, eq=False)
class Profile:
    """Seconds and memory of every op on one reference device, for one microbatch of the graph's `batch_size`.

    Attributes:
        forward_s: forward pass, `float64[n]`.
        backward_s: backward pass; 0 where nothing is differentiated.
        update_s: optimizer update of the op's parameters.
        source: where the figures come from: `measured` or `roofline`.
        model: the product they are of, one of `GPUS`; empty for anything else, such as a CPU core.
        working_bytes: the most that a pass of the op holds for itself, beside its value, what it saves and its state: the
            gradients that come in and go out, and what its kernels work in, `float64[n]`; none if not measured.
    """

    forward_s: Floats
    backward_s: Floats
    update_s: Floats
    source: str
    model: str = ""
    working_bytes: Floats | None = None

    def save(self, path: str | PathLike, graph: Graph) -> None:
        """Write `segue.profile/1` JSON."""
        record: dict[str, Any] = {"format": PROFILE_FORMAT, "graph": graph.hash, "source": self.source}
        if self.model:
            record["model"] = self.model
        for field in (*_SECONDS, "working_bytes"):
            if getattr(self, field) is not None:
                record[field] = dict(zip(graph.names, getattr(self, field).tolist(), strict=True))
        write_json(path, record)

    @staticmethod
    def load(path: str | PathLike, graph: Graph) -> "Profile":
        """Read a profile of this graph.

        Raises:
            SegueError: if the file is malformed or of another graph.
        """
        where = str(path)
        record = read_json(path, PROFILE_FORMAT)
        check_fields(record, ["format", "graph", *_SECONDS, "source"], ["model", "working_bytes"], where)
        if record["graph"] != graph.hash:
            raise SegueError(f"{where}: graph: taken of graph {record['graph']}, but {graph.name} is {graph.hash}")
        columns = {field: _column(record, field, "seconds", graph, where) for field in _SECONDS}
        if "working_bytes" in record:
            columns["working_bytes"] = _column(record, "working_bytes", "bytes", graph, where)
        model = text(record.get("model", ""), "model", where)
        if model and model not in GPUS:
            raise SegueError(f"{where}: model must be one of {', '.join(GPUS)}, got {model!r}")
        return Profile(**columns, source=text(record["source"], "source", where), model=model)


def _column(record: dict[str, Any], field: str, unit: str, graph: Graph, where: str) -> Floats:
    """One number for each op."""
    entries = record[field]
    if not isinstance(entries, dict) or set(entries) != set(graph.names):
        raise SegueError(f"{where}: {field}: expected {unit} for each op of {graph.name}")
    return np.array([number(entries[op], f"{field}[{op}]", where, least=0) for op in graph.names])


def roofline(graph: Graph, gpu: Gpu | None = None) -> Profile:
    """Op times from operations and bytes alone, for graphs that nothing has been measured of.

    An op takes the longer of its arithmetic and its memory traffic (Williams et al., "Roofline", CACM 2009), on a GPU with
    a kernel launch on top. What is bound by arithmetic at all are products and convolutions, so that all of it is priced as
    theirs: float32 training on tensor cores in TF32 where the GPU has it (convolutions by torch's default, other
    products under `torch.set_float32_matmul_precision("high")`), else plain float32.

    Args:
        graph: the ops.
        gpu: the product; by default a reference core of `ROOFLINE_FLOPS_PER_S` and `ROOFLINE_BYTES_PER_S`.
    """
    flops_per_s, bytes_per_s, launch = ROOFLINE_FLOPS_PER_S, ROOFLINE_BYTES_PER_S, 0.0
    if gpu is not None:
        flops_per_s, bytes_per_s = ARITHMETIC_SHARE * gpu.flops_per_s, MEMORY_SHARE * gpu.memory_bytes_per_s
        launch = LAUNCH_S
    traffic = (graph.read_bytes + graph.written_bytes) / bytes_per_s
    differentiated = (graph.backward_flops > 0).astype(np.float64)
    forward = np.maximum(graph.forward_flops / flops_per_s, traffic) + launch
    backward = np.maximum(graph.backward_flops / flops_per_s, 2 * traffic * differentiated) + launch * differentiated
    update = 4 * graph.parameter_bytes / bytes_per_s + launch * (graph.parameter_bytes > 0)
    return Profile(forward, backward, update, "roofline", gpu.name if gpu else "")


@dataclass(frozen=True, eq=False)
class Costs:
    """What the scheduler and the simulator charge; devices that cost the same form a class and share a column.

    Attributes:
        forward_s: seconds of each op's forward on each class of devices for one full microbatch, `float64[n, c]`.
        backward_s: the same for the backward pass.
        update_s: seconds of the optimizer for each op's parameters, once a step.
        device_class: class of each device, `int64[d]`.
        state_bytes: parameters, gradients, optimizer state and buffers of each op, `float64[n]`.
        working_bytes: the most that a pass of each op holds for itself, see `Profile`, `float64[n]`.
        overhead_s: seconds on top for each instruction on each device, `float64[d]`.
    """

    forward_s: Floats
    backward_s: Floats
    update_s: Floats
    device_class: Ints
    state_bytes: Floats
    working_bytes: Floats
    overhead_s: Floats

    def on_devices(self, seconds: Floats) -> Floats:
        """A column a device instead of a class, `float64[n, d]`."""
        return seconds[:, self.device_class]


def make_costs(
    graph: Graph,
    topology: Topology,
    profile: Profile | None = None,
    optimizer_state_per_parameter: float = 2.0,
) -> Costs:
    """Costs of a graph on a topology: each device's seconds at speed 1, divided by its speed.

    Seconds at speed 1 are the profile's own, for a device without `model` (if the first device has one, the speeds of those
    without are relative to its product) and for the product that the profile was taken on. For any other product they are its
    roofline, scaled by what was measured: see `on_product`.

    Args:
        graph: the ops.
        topology: the devices.
        profile: seconds on the device of speed 1; by default `roofline(graph)`.
        optimizer_state_per_parameter: bytes of optimizer state per byte of parameter (Adam 2, SGD with momentum 1).
    """
    profile = profile or roofline(graph)
    first = topology.devices[0].model
    pairs = [(device.model or first, device.speed) for device in topology.devices]
    classes = {pair: number for number, pair in enumerate(sorted(set(pairs)))}
    products = {model: on_product(graph, profile, model) if model else profile for model, _ in classes}

    def columns(field: str) -> Floats:
        result = np.empty((graph.num_ops, len(classes)))
        for model, product in products.items():
            mine = [number for (name, _), number in classes.items() if name == model]
            first, last = mine[0], mine[-1] + 1
            pace = np.array([1.0 / speed for name, speed in classes if name == model])
            np.multiply.outer(getattr(product, field), pace, out=result[:, first:last])
        return result

    return Costs(
        forward_s=columns("forward_s"),
        backward_s=columns("backward_s"),
        update_s=columns("update_s"),
        device_class=np.array([classes[pair] for pair in pairs], np.int64),
        state_bytes=(2.0 + optimizer_state_per_parameter) * graph.parameter_bytes + graph.buffer_bytes,
        working_bytes=_working_bytes(graph, products.values()),
        overhead_s=topology.overhead_s,
    )


def _working_bytes(graph: Graph, profiles: Iterable[Profile]) -> Floats:
    """What every op works in, on whichever device takes most.

    Where nothing has been measured: its gradients, its parameters' gradients and as much again for its kernels, which want
    convolutions' weights in another order.
    """
    inputs = np.bincount(graph.edges[:, 1], graph.output_bytes[graph.edges[:, 0]], graph.num_ops)
    usual = np.where(graph.requires_grad, 2 * graph.parameter_bytes + graph.output_bytes + inputs, 0.0)
    return np.max([usual if p.working_bytes is None else p.working_bytes for p in profiles], axis=0)


def on_product(graph: Graph, profile: Profile, model: str) -> Profile:
    """What a profile lets us expect of another product.

    For each op, with sums over the ops of its kind `k` and over all,

        seconds = roofline of `model` * c * clip(r_k / r, 1 / MOST_BENT, MOST_BENT),
        r_k = measured_k / reference_k,  r = measured / reference,

    separately for forward, backward and update. The reference is the roofline of the product that the profile was taken on,
    and c = r: what the kernels made of that GPU they make of this one. A profile of something else is held against the
    reference core, and c = 1: it says which kinds of ops are dear, but nothing about how fast a GPU is.
    """
    if model == profile.model:
        return profile
    target, reference = roofline(graph, GPUS[model]), roofline(graph, GPUS.get(profile.model))
    kinds = np.unique(graph.kinds, return_inverse=True)[1]

    def scaled(field: str) -> Floats:
        measured, expected = getattr(profile, field), getattr(reference, field)
        overall = _ratio(measured.sum(), expected.sum())
        sums = [np.bincount(kinds, seconds).astype(np.float64) for seconds in (measured, expected)]
        of_kind = _ratio(sums[0], sums[1], overall) / overall
        bent = np.clip(of_kind, 1 / MOST_BENT, MOST_BENT)[kinds]
        return getattr(target, field) * bent * (overall if profile.model else 1.0)

    return Profile(scaled("forward_s"), scaled("backward_s"), scaled("update_s"), profile.source, model)


def _ratio(measured: Floats, expected: Floats, unknown: Floats | float = 1.0) -> Floats:
    """Ratios, and `unknown` where there is nothing to hold against each other."""
    known = (measured > 0) & (expected > 0)
    return np.where(known, measured / np.where(known, expected, 1.0), unknown)


def microbatch_sizes(batch_size: int, microbatches: int) -> list[int]:
    """Sizes of the parts a batch is cut into: all the same but for a smaller last one (as `torch.chunk`)."""
    size = -(-batch_size // microbatches)
    return part_sizes(batch_size, size)


def part_sizes(batch_size: int, size: int) -> list[int]:
    """Parts of `size` samples, the last one smaller if it does not come out even."""
    full, rest = divmod(batch_size, size)
    return [size] * full + ([rest] if rest else [])


def fractions(sizes: Sequence[int]) -> Floats:
    """Microbatch sizes relative to the first, which is a full one."""
    return np.array(sizes, float) / sizes[0]
