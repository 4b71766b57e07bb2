"""What NVIDIA's management library (NVML) knows of a machine's GPUs."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .gpus import pcie_bytes_per_s

_MOST_NVLINKS = 18


@dataclass(frozen=True)
class NvmlGpu:
    """One GPU.

    Attributes:
        index: its number for NVML and nvidia-smi, which CUDA_VISIBLE_DEVICES does not change.
        pcie_bytes_per_s: peak of the PCIe lanes that it is connected by, one way.
        nvlinks: NVLinks that are active.
    """

    index: int
    pcie_bytes_per_s: float
    nvlinks: int


def read_nvml(uuids: Sequence[str], nvml: Any) -> list[NvmlGpu] | None:
    """The GPUs with these `GPU-…` identifiers.

    Args:
        uuids: what torch gives as `get_device_properties(…).uuid`, after `GPU-`.
        nvml: the module `pynvml`, or one that answers the same calls.

    Returns:
        One entry for each, or `None` if NVML cannot answer (no driver, or a slice of a GPU).
    """
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        return [_read(nvml.nvmlDeviceGetHandleByUUID(uuid), nvml) for uuid in uuids]
    except nvml.NVMLError:
        return None
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _read(handle: Any, nvml: Any) -> NvmlGpu:
    # The most, not the current: a GPU at rest drops to the slowest generation.
    generation = nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle)
    lanes = nvml.nvmlDeviceGetMaxPcieLinkWidth(handle)
    return NvmlGpu(nvml.nvmlDeviceGetIndex(handle), pcie_bytes_per_s(generation, lanes), _active_nvlinks(handle, nvml))


def _active_nvlinks(handle: Any, nvml: Any) -> int:
    active = 0
    for link in range(_MOST_NVLINKS):
        try:
            active += nvml.nvmlDeviceGetNvLinkState(handle, link) == nvml.NVML_FEATURE_ENABLED
        except nvml.NVMLError:  # no such link
            break
    return active
