"""`GPUS`: what common GPUs can do, by the vendor's datasheets."""

import re
from dataclasses import dataclass

from .errors import SegueError

GIB = 2.0**30

# Bytes per second and lane each way, after the line code: PCI-SIG base specifications 1.0 to 6.0.
_PCIE_LANE_BYTES_PER_S = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}


@dataclass(frozen=True)
class Gpu:
    """One product. Rates are the datasheet's peaks, of dense arithmetic (no structured sparsity).

    Attributes:
        name: key of `GPUS`, and what `Device.model` says.
        fp32_flops_per_s: plain float32 arithmetic, outside the tensor cores.
        tf32_flops_per_s: tensor cores on float32 data rounded to TF32; 0 before Ampere, which has none.
        memory_bytes: capacity; the sheets' GB are 2^30 bytes, as the drivers report them.
        memory_bytes_per_s: of the GPU's own memory.
        pcie_generation: of its 16 lanes.
        nvlinks: number of NVLinks, 0 if there are none.
        nvlink_bytes_per_s: all NVLinks together, one way (the sheets give both ways together).
        driver_name: what the driver calls the product, without the words NVIDIA, Tesla and GeForce.
        source: title and address of the datasheet or white paper.
    """

    name: str
    fp32_flops_per_s: float
    tf32_flops_per_s: float
    memory_bytes: float
    memory_bytes_per_s: float
    pcie_generation: int
    nvlinks: int
    nvlink_bytes_per_s: float
    driver_name: str
    source: str

    @property
    def flops_per_s(self) -> float:
        """What float32 products and convolutions run at: TF32 where there is such a thing, else plain float32."""
        return self.tf32_flops_per_s or self.fp32_flops_per_s

    @property
    def pcie_bytes_per_s(self) -> float:
        """The PCIe slot, one way."""
        return pcie_bytes_per_s(self.pcie_generation)


def pcie_bytes_per_s(generation: int, lanes: int = 16) -> float:
    """Peak of a PCIe slot, one way; generations that came after the table count as its last."""
    newest = max(_PCIE_LANE_BYTES_PER_S)
    return lanes * _PCIE_LANE_BYTES_PER_S[min(max(generation, 1), newest)]


def find_gpu(name: str) -> Gpu:
    """The GPU that people or the driver call `name`: `RTX 3090`, `rtx-3090`, `NVIDIA GeForce RTX 3090`.

    Raises:
        SegueError: if the table has none of that name.
    """
    gpu = _BY_WORDS.get(_words(name))
    if gpu is None:
        raise SegueError(f"GPU {name!r}: not in the table; known: {', '.join(GPUS)}")
    return gpu


def product_name(driver_name: str) -> str:
    """The table's name of what the driver calls `driver_name`; empty for a product that the table does not have."""
    gpu = _BY_WORDS.get(_words(driver_name))
    return gpu.name if gpu else ""


def _words(name: str) -> str:
    kept = [word for word in re.split(r"[\s_-]+", name.casefold()) if word not in ("nvidia", "tesla", "geforce", "")]
    return " ".join(kept)


def _row(
    name: str,
    fp32: float,
    tf32: float,
    memory: int,
    bandwidth: float,
    pcie: int,
    source: str,
    *,
    nvlinks: int = 0,
    nvlink: float = 0.0,
    driver: str = "",
) -> Gpu:
    """A row in the sheets' units: TFLOP/s, GB, GB/s; `nvlink` one way."""
    return Gpu(
        name=name,
        fp32_flops_per_s=fp32 * 1e12,
        tf32_flops_per_s=tf32 * 1e12,
        memory_bytes=memory * GIB,
        memory_bytes_per_s=bandwidth * 1e9,
        pcie_generation=pcie,
        nvlinks=nvlinks,
        nvlink_bytes_per_s=nvlink * 1e9,
        driver_name=driver or name,
        source=source,
    )


_SITE = "https://www.nvidia.com"
_IMAGES = "https://images.nvidia.com"
_PASCAL = f"GeForce GTX 1080 Ti specifications, {_SITE}/en-us/geforce/products/10series/geforce-gtx-1080-ti/"
_TURING = (
    "Turing GPU Architecture white paper, "
    f"{_IMAGES}/aem-dam/en-zz/Solutions/design-visualization/technologies/turing-architecture/"
    "NVIDIA-Turing-Architecture-Whitepaper.pdf"
)
_GA102 = (
    f"Ampere GA102 GPU Architecture white paper, {_SITE}/content/PDF/"
    "nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.1.pdf"
)
_RTX_3060 = f"GeForce RTX 3060 specifications, {_SITE}/en-us/geforce/graphics-cards/30-series/rtx-3060-3060ti/"
_ADA = f"Ada GPU Architecture white paper, {_IMAGES}/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_BLACKWELL = (
    "RTX Blackwell GPU Architecture white paper, "
    f"{_IMAGES}/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf"
)
_V100 = f"V100 datasheet, {_IMAGES}/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf"
_T4 = f"T4 datasheet, {_SITE}/content/dam/en-zz/Solutions/Data-Center/tesla-t4/t4-tensor-core-datasheet-951643.pdf"
_A100 = (
    f"A100 datasheet, {_SITE}/content/dam/en-zz/Solutions/Data-Center/a100/pdf/"
    "nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
)
_A10 = f"A10 datasheet, {_SITE}/content/dam/en-zz/Solutions/Data-Center/a10/pdf/a10-datasheet.pdf"
_A30 = f"A30 datasheet, {_SITE}/content/dam/en-zz/Solutions/data-center/products/a30-gpu/pdf/a30-datasheet.pdf"
_A40 = f"A40 datasheet, {_IMAGES}/content/Solutions/data-center/a40/nvidia-a40-datasheet.pdf"
_A6000 = f"RTX A6000 product page and datasheet, {_SITE}/en-us/design-visualization/rtx-a6000/"
_L4 = f"L4 product page and datasheet, {_SITE}/en-us/data-center/l4/"
_L40S = f"L40S product page and datasheet, {_SITE}/en-us/data-center/l40s/"
_H100 = f"H100 product page and datasheet, {_SITE}/en-us/data-center/h100/"
_H100_PCIE = "H100 architecture white paper, https://resources.nvidia.com/en-us-tensor-core/gtc22-whitepaper-hopper"
_H200 = f"H200 product page and datasheet, {_SITE}/en-us/data-center/h200/"
_B200 = f"HGX B200, an eighth of its figures, {_SITE}/en-us/data-center/hgx/"

# name, FP32 and TF32 in TFLOP/s, memory in GB and GB/s, PCIe generation, source
_ROWS = (
    _row("GTX 1080 Ti", 11.3, 0, 11, 484, 3, _PASCAL),
    _row("RTX 2080 Ti", 13.4, 0, 11, 616, 3, _TURING, nvlinks=2, nvlink=50),
    _row("RTX 3060", 12.7, 12.7, 12, 360, 4, _RTX_3060),
    _row("RTX 3080", 29.8, 29.8, 10, 760, 4, _GA102),
    _row("RTX 3090", 35.6, 35.6, 24, 936, 4, _GA102, nvlinks=4, nvlink=56.25),
    _row("RTX 4080", 48.7, 48.7, 16, 716.8, 4, _ADA),
    _row("RTX 4090", 82.6, 82.6, 24, 1008, 4, _ADA),
    _row("RTX 5090", 104.8, 104.8, 32, 1792, 5, _BLACKWELL),
    _row("V100 SXM2 16GB", 15.7, 0, 16, 900, 3, _V100, nvlinks=6, nvlink=150),
    _row("V100 SXM2 32GB", 15.7, 0, 32, 900, 3, _V100, nvlinks=6, nvlink=150),
    _row("V100 PCIe 16GB", 14.0, 0, 16, 900, 3, _V100),
    _row("V100 PCIe 32GB", 14.0, 0, 32, 900, 3, _V100),
    _row("T4", 8.1, 0, 16, 300, 3, _T4),
    _row("A10", 31.2, 62.5, 24, 600, 4, _A10),
    _row("A30", 10.3, 82, 24, 933, 4, _A30, nvlinks=4, nvlink=100),
    _row("A40", 37.4, 74.8, 48, 696, 4, _A40, nvlinks=4, nvlink=56.25),
    _row("RTX A6000", 38.7, 77.4, 48, 768, 4, _A6000, nvlinks=4, nvlink=56.25),
    _row("A100 SXM 40GB", 19.5, 156, 40, 1555, 4, _A100, nvlinks=12, nvlink=300, driver="A100 SXM4 40GB"),
    _row("A100 SXM 80GB", 19.5, 156, 80, 2039, 4, _A100, nvlinks=12, nvlink=300, driver="A100 SXM4 80GB"),
    _row("A100 PCIe 40GB", 19.5, 156, 40, 1555, 4, _A100, nvlinks=12, nvlink=300),
    _row("A100 PCIe 80GB", 19.5, 156, 80, 1935, 4, _A100, nvlinks=12, nvlink=300, driver="A100 80GB PCIe"),
    _row("L4", 30.3, 60, 24, 300, 4, _L4),
    _row("L40S", 91.6, 183, 48, 864, 4, _L40S),
    _row("H100 SXM", 67, 494.5, 80, 3350, 5, _H100, nvlinks=18, nvlink=450, driver="H100 80GB HBM3"),
    _row("H100 PCIe", 51, 378, 80, 2000, 5, _H100_PCIE, nvlinks=12, nvlink=300),
    _row("H200", 67, 494.5, 141, 4800, 5, _H200, nvlinks=18, nvlink=450),
    _row("B200", 75, 1125, 180, 8000, 5, _B200, nvlinks=18, nvlink=900),
)

GPUS: dict[str, Gpu] = {gpu.name: gpu for gpu in _ROWS}
"""Product name -> `Gpu`."""

_BY_WORDS = {_words(name): gpu for gpu in _ROWS for name in (gpu.name, gpu.driver_name)}
