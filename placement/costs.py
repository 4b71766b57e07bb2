"""`Costs`: what each op costs on each device, in seconds and bytes."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import SegueError
from .files import check_fields, number, read_json, text, write_json
from .graph import Graph
from .topology import Topology

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
PROFILE_FORMAT = "segue.profile/1"

# What a reference core of the roofline does; only ratios between ops matter until something has been measured.
ROOFLINE_FLOPS_PER_S = 2e10
ROOFLINE_BYTES_PER_S = 5e9


@dataclass(frozen=True, eq=False)
class Profile:
    """Seconds of every op on one reference device, for one microbatch of the graph's `batch_size`.

    Attributes:
        forward_s: forward pass, `float64[n]`.
        backward_s: backward pass; 0 where nothing is differentiated.
        update_s: optimizer update of the op's parameters.
        source: where the figures come from: `measured` or `roofline`.
    """

    forward_s: Floats
    backward_s: Floats
    update_s: Floats
    source: str

    def save(self, path: str | PathLike, graph: Graph) -> None:
        """Write `segue.profile/1` JSON."""
        record: dict[str, Any] = {"format": PROFILE_FORMAT, "graph": graph.hash, "source": self.source}
        for field in ("forward_s", "backward_s", "update_s"):
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
        check_fields(record, ["format", "graph", *(f.name for f in fields(Profile))], [], where)
        if record["graph"] != graph.hash:
            raise SegueError(f"{where}: graph: taken of graph {record['graph']}, but {graph.name} is {graph.hash}")
        columns = {}
        for field in ("forward_s", "backward_s", "update_s"):
            entries = record[field]
            if not isinstance(entries, dict) or set(entries) != set(graph.names):
                raise SegueError(f"{where}: {field}: expected seconds for each op of {graph.name}")
            columns[field] = np.array([number(entries[op], f"{field}[{op}]", where, least=0) for op in graph.names])
        return Profile(**columns, source=text(record["source"], "source", where))


def roofline(graph: Graph) -> Profile:
    """Op times from operations and bytes alone, for graphs that nothing has been measured of.

    An op takes the longer of its arithmetic and its memory traffic (Williams et al., "Roofline", CACM 2009).
    """
    traffic = (graph.read_bytes + graph.written_bytes) / ROOFLINE_BYTES_PER_S
    forward = np.maximum(graph.forward_flops / ROOFLINE_FLOPS_PER_S, traffic)
    backward = np.maximum(graph.backward_flops / ROOFLINE_FLOPS_PER_S, 2 * traffic * (graph.backward_flops > 0))
    update = 4 * graph.parameter_bytes / ROOFLINE_BYTES_PER_S
    return Profile(forward, backward, update, "roofline")


@dataclass(frozen=True, eq=False)
class Costs:
    """What the scheduler and the simulator charge; devices that cost the same form a class and share a column.

    Attributes:
        forward_s: seconds of each op's forward on each class of devices for one full microbatch, `float64[n, c]`.
        backward_s: the same for the backward pass.
        update_s: seconds of the optimizer for each op's parameters, once a step.
        device_class: class of each device, `int64[d]`.
        state_bytes: parameters, gradients, optimizer state and buffers of each op, `float64[n]`.
        overhead_s: seconds on top for each instruction on each device, `float64[d]`.
    """

    forward_s: Floats
    backward_s: Floats
    update_s: Floats
    device_class: Ints
    state_bytes: Floats
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
    """Costs of a graph on a topology: the profile's seconds divided by each device's speed.

    Args:
        graph: the ops.
        topology: the devices.
        profile: seconds on the device of speed 1; by default `roofline(graph)`.
        optimizer_state_per_parameter: bytes of optimizer state per byte of parameter (Adam 2, SGD with momentum 1).
    """
    profile = profile or roofline(graph)
    speed, device_class = np.unique(topology.speed, return_inverse=True)
    slow = 1.0 / speed
    return Costs(
        forward_s=np.outer(profile.forward_s, slow),
        backward_s=np.outer(profile.backward_s, slow),
        update_s=np.outer(profile.update_s, slow),
        device_class=device_class,
        state_bytes=(2.0 + optimizer_state_per_parameter) * graph.parameter_bytes + graph.buffer_bytes,
        overhead_s=topology.overhead_s,
    )


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
