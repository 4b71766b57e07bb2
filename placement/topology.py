"""`Topology`: the devices ops can run on and the links between them."""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from .errors import SegueError
from .files import check_fields, check_format, number, read_text, text, write_json, write_text
from .gpus import GPUS

FORMAT = "segue.topology/1"
KINDS = ("cuda", "cpu", "emulated")


@dataclass(frozen=True)
class Device:
    """One place where ops can run.

    Attributes:
        name: unique in its topology.
        kind: `cuda` (a GPU), `cpu` (a worker pinned to cores) or `emulated` (real training at a declared pace).
        memory_bytes: what parameters, optimizer state and activations may take together.
        speed: ops per second relative to its product, or without `model` to the first device's product, or without that to
            the device that the profile was taken on; 0.5 takes twice the time.
        overhead_s: seconds that every instruction costs on top of its ops.
        message_s: seconds that sending or receiving a message keeps the device itself busy.
        message_s_per_byte: the same for each byte of it.
        host: machine that the device is in.
        index: CUDA device number, for `cuda`.
        cores: cores the worker is pinned to, for `cpu`.
        model: the product it is, one of `segue.placement.gpus.GPUS`, if its datasheet shall price ops.
    """

    name: str
    kind: str
    memory_bytes: float
    speed: float = 1.0
    overhead_s: float = 0.0
    host: str = "localhost"
    index: int = 0
    cores: tuple[int, ...] = ()
    model: str = ""
    message_s: float = 0.0
    message_s_per_byte: float = 0.0


@dataclass(frozen=True)
class Link:
    """What carries bytes from one device to another, in one direction; messages pass one after the other.

    Attributes:
        source: name of the sending device.
        target: name of the receiving device.
        latency_s: seconds that a message takes besides its bytes.
        bandwidth_bytes_per_s: bytes per second.
        channels: buses and network cards on the way; messages of all links that name the same one take turns on it.
    """

    source: str
    target: str
    latency_s: float
    bandwidth_bytes_per_s: float
    channels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Topology:
    """Devices and links; device `i` is run by worker `i`.

    Attributes:
        name: what people call it.
        devices: in worker order.
        links: one for each ordered pair of different devices.
    """

    name: str
    devices: tuple[Device, ...]
    links: tuple[Link, ...] = ()

    @property
    def num_devices(self) -> int:
        """Number of devices."""
        return len(self.devices)

    @cached_property
    def index(self) -> dict[str, int]:
        """Device name -> position."""
        return {device.name: position for position, device in enumerate(self.devices)}

    @cached_property
    def speed(self) -> NDArray[np.float64]:
        """Relative speed, `float64[d]`."""
        return np.array([device.speed for device in self.devices])

    @cached_property
    def memory_bytes(self) -> NDArray[np.float64]:
        """Capacity, `float64[d]`."""
        return np.array([device.memory_bytes for device in self.devices], float)

    @cached_property
    def overhead_s(self) -> NDArray[np.float64]:
        """Seconds per instruction, `float64[d]`."""
        return np.array([device.overhead_s for device in self.devices], float)

    @cached_property
    def message_s(self) -> NDArray[np.float64]:
        """Seconds of the device itself per message, `float64[d]`."""
        return np.array([device.message_s for device in self.devices], float)

    @cached_property
    def message_s_per_byte(self) -> NDArray[np.float64]:
        """Seconds of the device itself per byte of a message, `float64[d]`."""
        return np.array([device.message_s_per_byte for device in self.devices], float)

    @cached_property
    def latency_s(self) -> NDArray[np.float64]:
        """Latency from row to column, `float64[d, d]`, 0 on the diagonal."""
        return self._link_matrix("latency_s", 0.0)

    @cached_property
    def seconds_per_byte(self) -> NDArray[np.float64]:
        """Inverse bandwidth from row to column, `float64[d, d]`, 0 on the diagonal."""
        bandwidth = self._link_matrix("bandwidth_bytes_per_s", np.inf)
        return 1.0 / bandwidth

    @cached_property
    def channels(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What a message occupies on its way from device `a` to device `b`, `(start, of)`.

        It is `of[start[a * d + b]:start[a * d + b + 1]]`, numbers of channels; a link that names none has one to itself.
        """
        numbers: dict[str | tuple[int, int], int] = {}
        taken: dict[int, list[int]] = {}
        for link in self.links:
            pair = self.index[link.source], self.index[link.target]
            names = link.channels or (pair,)
            taken[pair[0] * self.num_devices + pair[1]] = [numbers.setdefault(name, len(numbers)) for name in names]
        counts = np.zeros(self.num_devices**2 + 1, np.int64)
        for pair, of in taken.items():
            counts[pair + 1] = len(of)
        flat = [number for pair in sorted(taken) for number in taken[pair]]
        return np.cumsum(counts), np.array(flat, np.int64)

    @cached_property
    def num_channels(self) -> int:
        """How many different channels `channels` holds."""
        return int(self.channels[1].max(initial=-1)) + 1

    def _link_matrix(self, field: str, diagonal: float) -> NDArray[np.float64]:
        matrix = np.full((self.num_devices, self.num_devices), diagonal)
        for link in self.links:
            matrix[self.index[link.source], self.index[link.target]] = getattr(link, field)
        return matrix

    @cached_property
    def hash(self) -> str:
        """Identifies everything but the name."""
        record = self.to_record()
        del record["name"]
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]

    def with_speed(self, speed: NDArray[np.float64]) -> "Topology":
        """The same topology with other device speeds."""
        devices = [replace(d, speed=float(s)) for d, s in zip(self.devices, speed, strict=True)]
        return replace(self, devices=tuple(devices))

    def without(self, names: Collection[str]) -> "Topology":
        """The topology without some of its devices and their links."""
        return replace(
            self,
            devices=tuple(device for device in self.devices if device.name not in names),
            links=tuple(link for link in self.links if link.source not in names and link.target not in names),
        )

    def to_record(self) -> dict[str, Any]:
        """The JSON and YAML form."""
        return {
            "format": FORMAT,
            "name": self.name,
            "devices": [_record(device) for device in self.devices],
            "links": [_record(link) for link in self.links],
        }

    def save(self, path: str | PathLike) -> None:
        """Write `segue.topology/1`, as YAML if the file's name ends so, else as JSON."""
        if Path(path).suffix in (".yaml", ".yml"):
            write_text(path, yaml.safe_dump(self.to_record(), sort_keys=False))
        else:
            write_json(path, self.to_record())

    @staticmethod
    def load(path: str | PathLike) -> "Topology":
        """Read a YAML or JSON topology.

        Raises:
            SegueError: naming the file, the field and the reason.
        """
        content = read_text(path)
        try:
            # YAML would read what JSON writes for a character beyond 16 bits as two halves of one.
            record = json.loads(content) if Path(path).suffix == ".json" else yaml.safe_load(content)
        except Exception as error:  # besides YAMLError, whatever a tag's own parser raises: `0x_`, `!!bool maybe`
            reason = " ".join(str(error).split())
            raise SegueError(f"{path}: not valid YAML or JSON: {reason or type(error).__name__}") from error
        return Topology.from_record(record, str(path))

    @staticmethod
    def from_record(record: Any, where: str = "topology") -> "Topology":
        """The topology of a record, checked.

        `links` may be left out in part where `default_link` gives `latency_s` and `bandwidth_bytes_per_s`; a link goes both
        ways unless the other direction is listed too.
        """
        check_format(record, FORMAT, where)
        check_fields(record, ["format", "devices"], ["name", "links", "default_link"], where)
        devices = _devices(record["devices"], where)
        links = _links(record.get("links"), record.get("default_link"), [d.name for d in devices], where)
        topology = Topology(text(record.get("name", Path(where).stem), "name", where), devices, links)
        check_topology(topology, where)
        return topology


def _record(part: Device | Link) -> dict[str, Any]:
    """A device or link as it is written; what is empty and messages that cost nothing, as by default, are left out."""
    row = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(part).items()}
    unsaid = {key for key, value in row.items() if value in ("", []) or (key.startswith("message_") and not value)}
    return {key: value for key, value in row.items() if key not in unsaid}


def uniform_links(names: Sequence[str], latency_s: float, bandwidth_bytes_per_s: float) -> tuple[Link, ...]:
    """The same link between every ordered pair of devices."""
    return tuple(Link(a, b, latency_s, bandwidth_bytes_per_s) for a in names for b in names if a != b)


def check_topology(topology: Topology, where: str | None = None) -> None:
    """Check that a topology is usable.

    Raises:
        SegueError: naming the device or link, the field, the value and what would be right.
    """
    where = where or f"topology {topology.name}"
    if not topology.devices:
        raise SegueError(f"{where}: devices: at least one device is needed")
    names = [device.name for device in topology.devices]
    for device in topology.devices:
        here = f"{where}: device {device.name}"
        if names.count(device.name) > 1:
            raise SegueError(f"{here}: name appears twice")
        if device.kind not in KINDS:
            raise SegueError(f"{here}: kind must be one of {', '.join(KINDS)}, got {device.kind!r}")
        if device.model and device.model not in GPUS:
            raise SegueError(f"{here}: model must be one of {', '.join(GPUS)}, got {device.model!r}")
        number(device.memory_bytes, "memory_bytes", here, above=0)
        number(device.speed, "speed", here, above=0)
        number(device.overhead_s, "overhead_s", here, least=0)
        number(device.message_s, "message_s", here, least=0)
        number(device.message_s_per_byte, "message_s_per_byte", here, least=0)
    seen, known = set(), set(names)
    for link in topology.links:
        here = f"{where}: link {link.source}->{link.target}"
        for end in (link.source, link.target):
            if end not in known:
                raise SegueError(f"{here}: unknown device {end!r}; known: {', '.join(names)}")
        if link.source == link.target:
            raise SegueError(f"{here}: a device needs no link to itself")
        if (link.source, link.target) in seen:
            raise SegueError(f"{here}: appears twice")
        seen.add((link.source, link.target))
        number(link.latency_s, "latency_s", here, least=0)
        number(link.bandwidth_bytes_per_s, "bandwidth_bytes_per_s", here, above=0)
    if len(seen) < len(names) * (len(names) - 1):
        a, b = next((a, b) for a in names for b in names if a != b and (a, b) not in seen)
        raise SegueError(f"{where}: link {a}->{b}: missing; list it or give a default_link")


def _devices(rows: Any, where: str) -> tuple[Device, ...]:
    if not isinstance(rows, list) or not rows:
        raise SegueError(f"{where}: devices: expected a list of at least one device")
    devices = []
    for position, row in enumerate(rows):
        if not isinstance(row, dict):
            raise SegueError(f"{where}: devices[{position}]: expected a mapping with name, kind, memory_bytes")
        here = f"{where}: device {row.get('name', position)}"
        check_fields(
            row,
            ["name", "kind", "memory_bytes"],
            ["speed", "overhead_s", "host", "index", "cores", "model", "message_s", "message_s_per_byte"],
            here,
        )
        cores = row.get("cores", [])
        if not isinstance(cores, list) or not all(type(core) is int and core >= 0 for core in cores):
            raise SegueError(f"{here}: cores must be a list of core numbers, got {cores!r}")
        index = row.get("index", 0)
        if type(index) is not int or index < 0:
            raise SegueError(f"{here}: index must be a CUDA device number, got {index!r}")
        devices.append(
            Device(
                name=text(row["name"], "name", here),
                kind=text(row["kind"], "kind", here),
                memory_bytes=number(row["memory_bytes"], "memory_bytes", here, above=0),
                speed=number(row.get("speed", 1.0), "speed", here, above=0),
                overhead_s=number(row.get("overhead_s", 0.0), "overhead_s", here, least=0),
                message_s=number(row.get("message_s", 0.0), "message_s", here, least=0),
                message_s_per_byte=number(row.get("message_s_per_byte", 0.0), "message_s_per_byte", here, least=0),
                host=text(row.get("host", "localhost"), "host", here),
                index=index,
                cores=tuple(cores),
                model=text(row.get("model", ""), "model", here),
            )
        )
    return tuple(devices)


def _links(rows: Any, default: Any, names: list[str], where: str) -> tuple[Link, ...]:
    rows = [] if rows is None else rows
    if not isinstance(rows, list):
        raise SegueError(f"{where}: links: expected a list")
    listed: dict[tuple[str, str], Link] = {}
    for position, row in enumerate(rows):
        if not isinstance(row, dict):
            raise SegueError(f"{where}: links[{position}]: expected a mapping with source, target, latency_s, …")
        here = f"{where}: link {row.get('source', '?')}->{row.get('target', '?')}"
        check_fields(row, ["source", "target", "latency_s", "bandwidth_bytes_per_s"], ["channels"], here)
        ends = text(row["source"], "source", here), text(row["target"], "target", here)
        link = Link(*ends, *_speed(row, here), _channels(row, here))
        if (link.source, link.target) in listed:
            raise SegueError(f"{here}: appears twice")
        listed[link.source, link.target] = link
    links = dict(listed)
    for (source, target), link in listed.items():
        links.setdefault((target, source), replace(link, source=target, target=source))
    if default is not None:
        here = f"{where}: default_link"
        if not isinstance(default, dict):
            raise SegueError(f"{here}: expected a mapping with latency_s and bandwidth_bytes_per_s")
        check_fields(default, ["latency_s", "bandwidth_bytes_per_s"], [], here)
        for link in uniform_links(names, *_speed(default, here)):
            links.setdefault((link.source, link.target), link)
    return tuple(links.values())


def _channels(row: dict[str, Any], where: str) -> tuple[str, ...]:
    names = row.get("channels", [])
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise SegueError(f"{where}: channels must be a list of names of buses or network cards, got {names!r}")
    return tuple(dict.fromkeys(names))


def _speed(row: dict[str, Any], where: str) -> tuple[float, float]:
    latency = number(row["latency_s"], "latency_s", where, least=0)
    bandwidth = number(row["bandwidth_bytes_per_s"], "bandwidth_bytes_per_s", where)
    if bandwidth <= 0:
        raise SegueError(f"{where}: bandwidth must be > 0 bytes/s, got {bandwidth:g}")
    return latency, bandwidth
