"""Topologies by name."""

from collections.abc import Callable

from .errors import SegueError
from .topology import Device, Topology, uniform_links

GIB = 2.0**30
MIB = 2.0**20


# What starting an instruction and passing its messages on costs a worker of this machine, so that it can keep the pace.
OVERHEAD_S = 1.5e-3


def _emulated(name: str, speeds: list[float], memory_bytes: float, latency_s: float, bandwidth: float) -> Topology:
    devices = tuple(Device(f"dev{i}", "emulated", memory_bytes, speed, OVERHEAD_S) for i, speed in enumerate(speeds))
    return Topology(name, devices, uniform_links([d.name for d in devices], latency_s, bandwidth))


_PRESETS: dict[str, Callable[[], Topology]] = {
    "emulated-1": lambda: _emulated("emulated-1", [0.5], 4 * GIB, 1e-4, 1e9),
    "emulated-2": lambda: _emulated("emulated-2", [0.3, 0.15], 2 * GIB, 2e-4, 400 * MIB),
    "emulated-4": lambda: _emulated("emulated-4", [0.08, 0.12, 0.24, 0.16], GIB, 2e-4, 200 * MIB),
    "emulated-4-equal": lambda: _emulated("emulated-4-equal", [0.15] * 4, GIB, 2e-4, 200 * MIB),
}


def presets() -> list[str]:
    """Names of the topologies that `preset` knows."""
    return sorted(_PRESETS)


def preset(name: str) -> Topology:
    """A topology by name.

    Raises:
        SegueError: if there is none of that name.
    """
    if name not in _PRESETS:
        raise SegueError(f"topology {name!r}: no such preset; known: {', '.join(presets())}; or give a YAML file")
    return _PRESETS[name]()
