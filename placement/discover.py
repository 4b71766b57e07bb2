"""The devices of this machine."""

import os
import time
from dataclasses import replace

import torch

from .topology import Device, Topology, uniform_links

# Until `probe_links` has measured them: what staging through host memory reaches on ordinary machines.
ASSUMED_LATENCY_S = 2e-4
ASSUMED_BANDWIDTH_BYTES_PER_S = 2e9
_PROBE_SIZE = 1024


def discover(cores_per_device: int = 1) -> Topology:
    """CUDA devices if there are any (a single one with the CPU beside it), else sets of CPU cores.

    Args:
        cores_per_device: cores that each `cpu` device is pinned to.

    Returns:
        Devices with their memory and with speeds relative to the first, and assumed links; workers measure the links with
        `segue.placement.executor.probe_links`.
    """
    devices = _gpu_machine() if torch.cuda.is_available() else _cpu_devices(cores_per_device)
    names = [device.name for device in devices]
    links = uniform_links(names, ASSUMED_LATENCY_S, ASSUMED_BANDWIDTH_BYTES_PER_S)
    return Topology("this-machine", tuple(devices), links)


def _gpu_machine() -> list[Device]:
    seconds = [_matmul_seconds(torch.device("cuda", index)) for index in range(torch.cuda.device_count())]
    devices = [
        Device(
            name=f"cuda{index}",
            kind="cuda",
            memory_bytes=float(torch.cuda.get_device_properties(index).total_memory),
            speed=seconds[0] / seconds[index],
            index=index,
        )
        for index in range(len(seconds))
    ]
    if len(devices) == 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        (cpu,) = _cpu_devices(cores)
        devices.append(replace(cpu, speed=seconds[0] / _matmul_seconds(torch.device("cpu"))))
    return devices


def _cpu_devices(cores_per_device: int) -> list[Device]:
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
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
