from types import SimpleNamespace

import pytest
import torch

from segue.placement import discover as module
from segue.placement.discover import discover, gpu_links
from segue.placement.gpus import GPUS, pcie_bytes_per_s
from segue.placement.nvml import NvmlGpu, read_nvml
from segue.placement.topology import Device, check_topology
from tests.placement.test_nvidia_smi import grid, topo


class FakeError(Exception):
    pass


class FakeNvml:
    """Two GPUs, numbered the other way round than torch numbers them."""

    NVMLError = FakeError
    NVML_FEATURE_ENABLED = 1

    def __init__(self, nvlinks=0, failing=()):
        self.nvlinks = nvlinks
        self.failing = failing
        self.open = 0

    def _maybe_fail(self, name):
        if name in self.failing:
            raise FakeError(name)

    def nvmlInit(self):
        self._maybe_fail("nvmlInit")
        self.open += 1

    def nvmlShutdown(self):
        self._maybe_fail("nvmlShutdown")
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid):
        self._maybe_fail("nvmlDeviceGetHandleByUUID")
        return {"GPU-a": 1, "GPU-b": 0}[uuid]

    def nvmlDeviceGetIndex(self, handle):
        return handle

    def nvmlDeviceGetMaxPcieLinkGeneration(self, handle):
        self._maybe_fail("nvmlDeviceGetMaxPcieLinkGeneration")
        return 4

    def nvmlDeviceGetMaxPcieLinkWidth(self, handle):
        return 16 if handle else 8

    def nvmlDeviceGetNvLinkState(self, handle, link):
        if link >= 4:
            raise FakeError("no such link")
        return int(link < self.nvlinks)


@pytest.fixture
def two_gpus(monkeypatch):
    """Torch as on a machine with two GPUs of which the second computes at half the pace; no nvidia-smi."""
    names = ["NVIDIA GeForce RTX 3090", "NVIDIA GeForce RTX 3060"]
    seconds = {"cuda:0": 1.0, "cuda:1": 2.0, "cpu": 50.0}
    properties = [SimpleNamespace(total_memory=24e9, uuid="a"), SimpleNamespace(total_memory=12e9, uuid="b")]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties[index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: names[index])
    monkeypatch.setattr(module, "_matmul_seconds", lambda device: seconds[str(device)])
    monkeypatch.setattr(module, "_topo_text", lambda: "")
    return names


def test_nvml_tells_number_slot_and_nvlinks():
    nvml = FakeNvml(nvlinks=3)
    found = read_nvml(["GPU-a", "GPU-b"], nvml)
    assert found == [NvmlGpu(1, pcie_bytes_per_s(4, 16), 3), NvmlGpu(0, pcie_bytes_per_s(4, 8), 3)]
    assert nvml.open == 0


@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetMaxPcieLinkGeneration"])
def test_an_nvml_that_fails_knows_nothing(call):
    assert read_nvml(["GPU-a"], FakeNvml(failing=(call,))) is None


def test_the_real_nvml_module_without_a_driver_knows_nothing():
    pynvml = pytest.importorskip("pynvml")
    if torch.cuda.is_available():
        pytest.skip("this machine has a driver")
    assert read_nvml(["GPU-a"], pynvml) is None


def test_known_gpus_are_declared_by_their_product(two_gpus):
    topology = discover(nvml=FakeNvml())
    check_topology(topology)
    assert [device.model for device in topology.devices] == ["RTX 3090", "RTX 3060"]
    assert topology.speed.tolist() == [1.0, 1.0]
    assert topology.memory_bytes.tolist() == [24e9, 12e9]
    assert topology.links[0].channels == ("host0.gpu1.up", "host0.gpu0.down")
    assert topology.links[0].bandwidth_bytes_per_s == pytest.approx(0.8 * pcie_bytes_per_s(4, 8))


def test_two_gpus_of_one_product_keep_the_pace_that_was_measured(two_gpus):
    two_gpus[1] = two_gpus[0]
    topology = discover(nvml=FakeNvml())
    assert {device.model for device in topology.devices} == {"RTX 3090"}
    assert topology.speed.tolist() == [1.0, 0.5]


def test_beside_a_gpu_that_is_not_in_the_table_all_are_priced_by_measurement(two_gpus):
    two_gpus[0] = "NVIDIA GeForce RTX 3090 Ti"
    topology = discover(nvml=FakeNvml())
    assert [device.model for device in topology.devices] == ["", ""]
    assert topology.speed.tolist() == [1.0, 0.5]


def test_a_single_gpu_has_the_cpu_beside_it(two_gpus):
    del two_gpus[1]
    topology = discover(nvml=FakeNvml())
    assert [device.kind for device in topology.devices] == ["cuda", "cpu"]
    assert [device.model for device in topology.devices] == ["RTX 3090", ""]
    assert topology.speed.tolist() == [1.0, 0.02]


def test_without_nvml_links_are_assumed(two_gpus):
    topology = discover(nvml=FakeNvml(failing=("nvmlInit",)))
    assert {link.bandwidth_bytes_per_s for link in topology.links} == {2e9}
    assert [device.model for device in topology.devices] == ["RTX 3090", "RTX 3060"]


DEVICES = [Device(f"cuda{i}", "cuda", 1e9, index=i, model="RTX 3090") for i in range(3)]


def test_what_nvidia_smi_prints_joins_the_gpus_by_its_numbers():
    found = [NvmlGpu(2, 1e9, 4), NvmlGpu(1, 1e9, 4), NvmlGpu(0, 1e9, 0)]
    rows = [["X", "PHB", "PHB"], ["PHB", "X", "NV4"], ["PHB", "NV4", "X"]]
    links = {(x.source, x.target): x for x in gpu_links(DEVICES, found, topo(rows))}
    assert links["cuda0", "cuda1"].bandwidth_bytes_per_s == pytest.approx(0.8 * GPUS["RTX 3090"].nvlink_bytes_per_s)
    assert links["cuda1", "cuda2"].channels == ("host0.gpu1.up", "host0.gpu0.down")


@pytest.mark.parametrize("text", ["", "NVIDIA-SMI has failed", topo(grid(2, lambda i, j: "SYS"))])
def test_without_a_readable_matrix_active_nvlinks_join_all_through_a_switch(text):
    found = [NvmlGpu(i, 1e9, 4) for i in range(3)]
    links = gpu_links(DEVICES, found, text)
    assert len(links) == 6
    assert links[0].channels == ("host0.gpu0.nvlink.up", "host0.gpu1.nvlink.down")
    pair = gpu_links(DEVICES[:2], found[:2], "")
    assert pair[0].channels == ()
    mixed = gpu_links(DEVICES, [*found[:2], NvmlGpu(2, 1e9, 0)], text)
    assert mixed[0].channels == ("host0.gpu0.up", "host0.gpu1.down")


def test_without_cuda_this_machine_is_its_cores():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    topology = discover()
    assert topology.name == "this-machine"
    assert {device.kind for device in topology.devices} == {"cpu"}
    assert {device.model for device in topology.devices} == {""}
    assert len({core for device in topology.devices for core in device.cores}) == topology.num_devices
