"""`Placement`: which device every op runs on."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import SegueError
from .files import check_fields, check_format, number, read_json, write_json
from .graph import Graph
from .topology import Topology

FORMAT = "segue.placement/1"


@dataclass(frozen=True, eq=False)
class Placement:
    """A device for every op, and how many parts the batch is cut into.

    Attributes:
        devices: device index of every op, `int64[n]`.
        microbatches: parts that the batch is cut into; it is the run's, not the agent's, since it changes the numbers.
    """

    devices: NDArray[np.int64]
    microbatches: int = 1

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Placement)
            and self.microbatches == other.microbatches
            and np.array_equal(self.devices, other.devices)
        )

    def __hash__(self) -> int:
        return hash((self.devices.tobytes(), self.microbatches))

    def moved(self, other: "Placement") -> NDArray[np.int64]:
        """Ops that are on different devices in the two placements."""
        return np.flatnonzero(self.devices != other.devices)

    def to_record(
        self,
        graph: Graph,
        topology: Topology,
        predicted_step_time_s: float | None = None,
        measured_step_time_s: float | None = None,
    ) -> dict[str, Any]:
        """The JSON form: device name by op name, with the hashes of the graph and topology it was made for."""
        return {
            "format": FORMAT,
            "graph": graph.hash,
            "topology": topology.hash,
            "microbatches": self.microbatches,
            "predicted_step_time_s": predicted_step_time_s,
            "measured_step_time_s": measured_step_time_s,
            "devices": {name: topology.devices[d].name for name, d in zip(graph.names, self.devices, strict=True)},
        }

    def save(self, path: str | PathLike, graph: Graph, topology: Topology, **step_times: float | None) -> None:
        """Write `segue.placement/1` JSON."""
        write_json(path, self.to_record(graph, topology, **step_times))

    @staticmethod
    def load(path: str | PathLike, graph: Graph, topology: Topology) -> "Placement":
        """Read a placement for this graph and these devices.

        Raises:
            SegueError: if the file is malformed, was made for another graph, or names unknown devices.
        """
        return Placement.from_record(read_json(path, FORMAT), graph, topology, str(path))

    @staticmethod
    def from_record(record: Any, graph: Graph, topology: Topology, where: str = "placement") -> "Placement":
        """The placement of a JSON record, checked against the graph and the topology's device names."""
        check_format(record, FORMAT, where)
        check_fields(
            record,
            ["format", "graph", "microbatches", "devices"],
            ["topology", "predicted_step_time_s", "measured_step_time_s"],
            where,
        )
        if record["graph"] != graph.hash:
            raise SegueError(
                f"{where}: graph: made for graph {record['graph']}, but {graph.name} is {graph.hash}; "
                "place this model again"
            )
        devices, microbatches = record["devices"], record["microbatches"]
        if not isinstance(devices, dict):
            raise SegueError(f"{where}: devices: expected an object of op name -> device name")
        if isinstance(microbatches, bool) or not isinstance(microbatches, int):
            raise SegueError(f"{where}: microbatches: expected a whole number, got {microbatches!r}")
        for field in ("predicted_step_time_s", "measured_step_time_s"):
            if record.get(field) is not None:
                number(record[field], field, where, least=0)
        for name in graph.names:
            if name not in devices:
                raise SegueError(f"{where}: devices: op {name!r} has no device")
        for name, device in devices.items():
            if name not in graph.index:
                raise SegueError(f"{where}: devices: {graph.name} has no op {name!r}")
            if not isinstance(device, str) or device not in topology.index:
                known = ", ".join(topology.index)
                raise SegueError(f"{where}: devices: {device!r} is not in the topology; known: {known}")
        chosen = np.array([topology.index[devices[name]] for name in graph.names], np.int64)
        placement = Placement(chosen, microbatches)
        check_placement(placement, graph, topology, where)
        return placement


def check_placement(placement: Placement, graph: Graph, topology: Topology, where: str = "placement") -> None:
    """Check that a placement can be scheduled (not that it fits memory; the clock says that).

    Raises:
        SegueError: if an op has no device or one that does not exist, a colocation group is split, or `microbatches` < 1.
    """
    devices = placement.devices
    if devices.shape != (graph.num_ops,):
        raise SegueError(f"{where}: devices: expected one for each of {graph.num_ops} ops, got {devices.shape}")
    wrong = np.flatnonzero((devices < 0) | (devices >= topology.num_devices))
    if wrong.size:
        op = wrong[0]
        raise SegueError(
            f"{where}: op {graph.names[op]}: device {devices[op]} is outside 0..{topology.num_devices - 1}"
        )
    if placement.microbatches < 1:
        raise SegueError(f"{where}: microbatches must be >= 1, got {placement.microbatches}")
    for label in np.unique(graph.colocation[graph.colocation >= 0]):
        members = np.flatnonzero(graph.colocation == label)
        if len(np.unique(devices[members])) > 1:
            names = ", ".join(graph.names[op] for op in members[:4])
            raise SegueError(f"{where}: ops {names} must share a device (colocation {label})")


def colocate(devices: Sequence[int] | NDArray[np.int64], graph: Graph) -> NDArray[np.int64]:
    """The nearest assignment that splits no colocation group: each group follows its first op."""
    devices = np.asarray(devices, np.int64)
    _, first, inverse = np.unique(graph.colocation, return_index=True, return_inverse=True)
    return np.where(graph.colocation >= 0, devices[first[inverse]], devices)
