"""Topologies by name: emulated ones that any machine can rehearse, and declared ones of common GPUs."""

from collections.abc import Callable, Sequence

from .buses import Slot, bus_link, nvlink
from .errors import SegueError
from .gpus import GPUS, Gpu
from .topology import Device, Link, Topology, uniform_links

GIB = 2.0**30
MIB = 2.0**20


# What starting an instruction and passing its messages on costs a worker of this machine, so that it can keep the pace.
OVERHEAD_S = 1.5e-3

# The same where messages go from GPU to GPU: Python's part of starting a stage.
GPU_OVERHEAD_S = 1e-4

GBIT_PER_S = 1e9 / 8


def _emulated(name: str, speeds: list[float], memory_bytes: float, latency_s: float, bandwidth: float) -> Topology:
    devices = tuple(Device(f"dev{i}", "emulated", memory_bytes, speed, OVERHEAD_S) for i, speed in enumerate(speeds))
    return Topology(name, devices, uniform_links([d.name for d in devices], latency_s, bandwidth))


def _device(name: str, gpu: Gpu, host: str, index: int) -> Device:
    return Device(name, "cuda", gpu.memory_bytes, overhead_s=GPU_OVERHEAD_S, host=host, index=index, model=gpu.name)


def _server(name: str, products: Sequence[str], *, per_switch: int = 1, sockets: int = 1) -> Topology:
    """One machine without NVLink.

    Args:
        name: of the topology.
        products: its GPUs.
        per_switch: GPUs that share the uplink of a PCIe switch; 1: each sits at the CPU.
        sockets: CPUs that the GPUs are spread over, in order.
    """
    gpus = [GPUS[product] for product in products]
    slots = [
        Slot(
            device=f"gpu{i}",
            lane=f"host0.gpu{i}",
            pcie_bytes_per_s=gpu.pcie_bytes_per_s,
            switch=f"host0.switch{i // per_switch}" if per_switch > 1 else "",
            socket=f"host0.cpu{i * sockets // len(gpus)}",
        )
        for i, gpu in enumerate(gpus)
    ]
    devices = tuple(
        _device(slot.device, gpu, "localhost", i) for i, (slot, gpu) in enumerate(zip(slots, gpus, strict=True))
    )
    return Topology(name, devices, _links(slots, bus_link))


def _nvlink_server(name: str, product: str, count: int) -> Topology:
    """One machine of equal GPUs, each joined by NVLink to every other: four directly, eight through NVSwitches.

    As on the vendor's HGX boards of four and eight.
    """
    gpu = GPUS[product]
    slots = [Slot(f"gpu{i}", f"host0.gpu{i}", gpu.pcie_bytes_per_s) for i in range(count)]
    devices = tuple(_device(slot.device, gpu, "localhost", i) for i, slot in enumerate(slots))
    return Topology(name, devices, _links(slots, _nvlink_board(gpu, count)))


def _hosts(name: str, hosts: Sequence[Sequence[str]], gbit_per_s: float) -> Topology:
    """Several machines, each with one network card; equal GPUs that have NVLink are joined by it inside a machine."""
    slots: list[Slot] = []
    devices: list[Device] = []
    for number, products in enumerate(hosts):
        host = f"host{number}"
        for i, product in enumerate(products):
            lane, gpu = f"{host}.gpu{i}", GPUS[product]
            slots.append(Slot(lane, lane, gpu.pcie_bytes_per_s, host=host, nic_bytes_per_s=gbit_per_s * GBIT_PER_S))
            devices.append(_device(lane, gpu, host, i))
    inside = {
        f"host{number}": _nvlink_board(GPUS[products[0]], len(products))
        for number, products in enumerate(hosts)
        if len(set(products)) == 1 and GPUS[products[0]].nvlinks
    }

    def join(a: Slot, b: Slot) -> Link:
        return inside[a.host](a, b) if a.host == b.host and a.host in inside else bus_link(a, b)

    return Topology(name, tuple(devices), _links(slots, join))


def _nvlink_board(gpu: Gpu, count: int) -> Callable[[Slot, Slot], Link]:
    """Up to four GPUs share their links out among the others; beyond that, a switch gives every pair all of them."""
    switched = count > 4
    bytes_per_s = gpu.nvlink_bytes_per_s * (1.0 if switched else (gpu.nvlinks // (count - 1)) / gpu.nvlinks)
    return lambda a, b: nvlink(a, b, bytes_per_s, switched=switched)


def _links(slots: Sequence[Slot], join: Callable[[Slot, Slot], Link]) -> tuple[Link, ...]:
    return tuple(join(a, b) for a in slots for b in slots if a is not b)


_PRESETS: dict[str, Callable[[str], Topology]] = {
    "emulated-1": lambda name: _emulated(name, [0.5], 4 * GIB, 1e-4, 1e9),
    "emulated-2": lambda name: _emulated(name, [0.3, 0.15], 2 * GIB, 2e-4, 400 * MIB),
    "emulated-4": lambda name: _emulated(name, [0.08, 0.12, 0.24, 0.16], GIB, 2e-4, 200 * MIB),
    "emulated-4-equal": lambda name: _emulated(name, [0.15] * 4, GIB, 2e-4, 200 * MIB),
    "workstation-3090-3060": lambda name: _server(name, ["RTX 3090", "RTX 3060"]),
    "workstation-4080-1080ti": lambda name: _server(name, ["RTX 4080", "GTX 1080 Ti"]),
    "workstation-4090-3090": lambda name: _server(name, ["RTX 4090", "RTX 3090"]),
    "workstation-5090-4090-3090": lambda name: _server(name, ["RTX 5090", "RTX 4090", "RTX 3090"]),
    "workstation-a6000-3090-2080ti": lambda name: _server(name, ["RTX A6000", "RTX 3090", "RTX 2080 Ti"]),
    "workstation-4-mixed": lambda name: _server(name, ["RTX 4090", "RTX 3090", "RTX 3080", "RTX 2080 Ti"]),
    "pcie-4-a10": lambda name: _server(name, ["A10"] * 4, per_switch=2),
    "pcie-4-v100": lambda name: _server(name, ["V100 PCIe 16GB"] * 4, per_switch=2, sockets=2),
    "pcie-8-l40s": lambda name: _server(name, ["L40S"] * 8, per_switch=2, sockets=2),
    "pcie-8-t4-l4": lambda name: _server(name, ["T4"] * 4 + ["L4"] * 4, per_switch=4, sockets=2),
    "nvlink-4-a100": lambda name: _nvlink_server(name, "A100 SXM 40GB", 4),
    "nvlink-8-a100": lambda name: _nvlink_server(name, "A100 SXM 80GB", 8),
    "nvlink-8-h100": lambda name: _nvlink_server(name, "H100 SXM", 8),
    "nvlink-8-b200": lambda name: _nvlink_server(name, "B200", 8),
    "hosts-2x2-4090-3090": lambda name: _hosts(name, [["RTX 4090", "RTX 3090"]] * 2, 25),
    "hosts-2x4-a100": lambda name: _hosts(name, [["A100 SXM 80GB"] * 4] * 2, 200),
    "hosts-2x4-a100-v100": lambda name: _hosts(name, [["A100 SXM 40GB"] * 4, ["V100 SXM2 32GB"] * 4], 100),
    "hosts-4x8-h100": lambda name: _hosts(name, [["H100 SXM"] * 8] * 4, 400),
}


def presets() -> list[str]:
    """Names of the topologies that `preset` knows."""
    return sorted(_PRESETS)


def preset(name: str) -> Topology:
    """A topology by name.

    `emulated-…` run on any machine. The others are declared: GPUs of `GPUS` with their datasheets' memory, priced by
    `make_costs`, and links after `placement/buses.py`; to train on one takes that hardware.

    Raises:
        SegueError: if there is none of that name.
    """
    if name not in _PRESETS:
        raise SegueError(f"topology {name!r}: no such preset; known: {', '.join(presets())}; or give a YAML file")
    return _PRESETS[name](name)
