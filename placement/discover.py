"""The devices of this machine."""

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from types import ModuleType
from typing import Any

import torch

from .buses import Slot, bus_link, nvlink, one_nvlink_bytes_per_s
from .cores import usable_cores
from .errors import SegueError
from .gpus import product_name
from .nvidia_smi import topo_links
from .nvml import NvmlGpu, read_nvml
from .topology import Device, Link, Topology, uniform_links

# Until `probe` has measured them: what staging through host memory reaches on ordinary machines.
ASSUMED_LATENCY_S = 2e-4
ASSUMED_BANDWIDTH_BYTES_PER_S = 2e9
_PROBE_SIZE = 1024


def discover(cores_per_device: int = 1, nvml: Any = None) -> Topology:
    """CUDA devices if there are any (a single one with the CPU beside it), else sets of CPU cores.

    GPUs that are all in `GPUS` get their product as `model`, and speeds relative to the first of their product; other devices
    have speeds relative to the first device. Links between GPUs are declared after NVML and `nvidia-smi topo -m` where the
    machine has them, others are assumed; workers measure the links with `segue.placement.executor.probe`.

    Args:
        cores_per_device: cores that each `cpu` device is pinned to.
        nvml: what answers NVML's calls; by default the module `pynvml`, if it is installed.
    """
    if not torch.cuda.is_available():
        return _joined(_cpu_devices(cores_per_device))
    devices = _gpus()
    if len(devices) == 1:
        return _joined([*devices, _cpu_beside()])
    nvml = nvml or _pynvml()
    uuids = [f"GPU-{torch.cuda.get_device_properties(device.index).uuid}" for device in devices]
    found = read_nvml(uuids, nvml) if nvml else None
    if found is None:
        return _joined(devices)
    return Topology("this-machine", tuple(devices), gpu_links(devices, found, _topo_text()))


def _joined(devices: list[Device]) -> Topology:
    names = [device.name for device in devices]
    links = uniform_links(names, ASSUMED_LATENCY_S, ASSUMED_BANDWIDTH_BYTES_PER_S)
    return Topology("this-machine", tuple(devices), links)


def _gpus() -> list[Device]:
    count = torch.cuda.device_count()
    properties = [torch.cuda.get_device_properties(index) for index in range(count)]
    seconds = [_matmul_seconds(torch.device("cuda", index)) for index in range(count)]
    models = [product_name(torch.cuda.get_device_name(index)) for index in range(count)]
    # Beside a GPU that only a measurement can price, the others must be priced by it too.
    models = models if all(models) else [""] * count
    return [
        Device(
            name=f"cuda{index}",
            kind="cuda",
            memory_bytes=float(properties[index].total_memory),
            speed=seconds[models.index(models[index])] / seconds[index],
            index=index,
            model=models[index],
        )
        for index in range(count)
    ]


def _cpu_beside() -> Device:
    """All cores as one device, its speed relative to the first GPU."""
    (cpu,) = _cpu_devices(len(usable_cores()))
    return replace(cpu, speed=_matmul_seconds(torch.device("cuda", 0)) / _matmul_seconds(torch.device("cpu")))


def gpu_links(devices: Sequence[Device], found: Sequence[NvmlGpu], topo: str) -> tuple[Link, ...]:
    """Links between this machine's GPUs.

    Args:
        devices: the GPUs.
        found: what NVML knows of each.
        topo: what `nvidia-smi topo -m` prints. Without it, GPUs that all have NVLinks active are taken to be joined by them
            (through a switch if they are more than two), and others to sit at the CPU.
    """
    numbered = [replace(device, index=gpu.index) for device, gpu in zip(devices, found, strict=True)]
    try:
        return topo_links(topo, numbered, [gpu.pcie_bytes_per_s for gpu in found])
    except SegueError:  # no such program, or it prints what we do not know
        pass
    slots = [
        Slot(device.name, f"host0.gpu{gpu.index}", gpu.pcie_bytes_per_s)
        for device, gpu in zip(devices, found, strict=True)
    ]
    rates = [gpu.nvlinks * one_nvlink_bytes_per_s(device.model) for device, gpu in zip(devices, found, strict=True)]
    if min(rates) > 0:
        switched = len(slots) > 2
        return tuple(nvlink(a, b, min(rates), switched=switched) for a, b in permutations(slots, 2))
    return tuple(bus_link(a, b) for a, b in permutations(slots, 2))


def _pynvml() -> ModuleType | None:
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml


def _topo_text() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    try:
        done = subprocess.run([program, "topo", "-m"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _cpu_devices(cores_per_device: int) -> list[Device]:
    cores = usable_cores()
    sets = [cores[i : i + cores_per_device] for i in range(0, len(cores), cores_per_device)]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / len(sets)
    return [
        Device(f"cpu{i}", "cpu", float(memory), len(mine) / len(sets[0]), cores=tuple(mine))
        for i, mine in enumerate(sets)
    ]


def _matmul_seconds(device: torch.device) -> float:
    a = torch.randn(_PROBE_SIZE, _PROBE_SIZE, device=device)
    times = []
    for _ in range(5):
        _wait_for(device)
        start = time.perf_counter()
        torch.mm(a, a)
        _wait_for(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
