import re
from itertools import pairwise

import pytest

from segue.placement.errors import SegueError
from segue.placement.gpus import GPUS, find_gpu, pcie_bytes_per_s, product_name


@pytest.mark.parametrize("gpu", GPUS.values(), ids=lambda gpu: gpu.name)
def test_every_gpu_has_figures_of_a_sensible_size_and_a_datasheet(gpu):
    assert 5e12 < gpu.fp32_flops_per_s < 2e14
    assert gpu.tf32_flops_per_s == 0 or gpu.tf32_flops_per_s >= gpu.fp32_flops_per_s * 0.99
    assert gpu.flops_per_s == max(gpu.fp32_flops_per_s, gpu.tf32_flops_per_s)
    assert 10 * 2**30 <= gpu.memory_bytes <= 200 * 2**30
    assert 2e11 < gpu.memory_bytes_per_s < 1e13
    assert (gpu.nvlinks > 0) == (gpu.nvlink_bytes_per_s > 0)
    assert re.search(r"https://\S+nvidia\.com/\S+$", gpu.source)


def test_tensor_cores_help_float32_from_ampere_on():
    without = {name for name, gpu in GPUS.items() if gpu.tf32_flops_per_s == 0}
    assert without == {name for name in GPUS if re.match(r"V100|T4|GTX 1080|RTX 20", name)}


def test_nvlink_is_given_one_way_and_in_whole_links():
    for gpu in GPUS.values():
        if gpu.nvlinks:
            assert gpu.nvlink_bytes_per_s / gpu.nvlinks in (14.0625e9, 25e9, 50e9)
    assert GPUS["H100 SXM"].nvlink_bytes_per_s == 450e9


@pytest.mark.parametrize(
    ("driver", "product"),
    {
        "NVIDIA A100-SXM4-80GB": "A100 SXM 80GB",
        "NVIDIA A100-PCIE-40GB": "A100 PCIe 40GB",
        "NVIDIA A100 80GB PCIe": "A100 PCIe 80GB",
        "Tesla V100-SXM2-16GB": "V100 SXM2 16GB",
        "Tesla T4": "T4",
        "NVIDIA A10": "A10",
        "NVIDIA H100 80GB HBM3": "H100 SXM",
        "NVIDIA H100 PCIe": "H100 PCIe",
        "NVIDIA H200": "H200",
        "NVIDIA GeForce RTX 3090": "RTX 3090",
        "NVIDIA GeForce GTX 1080 Ti": "GTX 1080 Ti",
        "NVIDIA RTX A6000": "RTX A6000",
        "NVIDIA GeForce RTX 3090 Ti": "",
        "NVIDIA GeForce RTX 4090 Laptop GPU": "",
        "NVIDIA A10G": "",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb": "",
        "": "",
    }.items(),
)
def test_a_product_is_known_by_the_drivers_name_for_it_and_by_no_other(driver, product):
    assert product_name(driver) == product


def test_people_may_write_a_name_with_hyphens_and_in_lower_case():
    assert find_gpu("rtx-3090") is GPUS["RTX 3090"]
    assert find_gpu("a100-sxm-80gb") is GPUS["A100 SXM 80GB"]


def test_an_unknown_gpu_names_those_that_are_known():
    with pytest.raises(SegueError, match=r"GPU 'Voodoo 2': not in the table; known: GTX 1080 Ti, RTX 2080 Ti"):
        find_gpu("Voodoo 2")


def test_each_pcie_generation_doubles_the_slot_or_nearly():
    rates = [pcie_bytes_per_s(generation) for generation in range(1, 7)]
    assert all(1.9 < fast / slow <= 2.0 for slow, fast in pairwise(rates))
    assert pcie_bytes_per_s(3) == pytest.approx(15.75e9, rel=0.01)
    assert pcie_bytes_per_s(4, 8) == pcie_bytes_per_s(4) / 2
    assert pcie_bytes_per_s(9) == rates[-1]
