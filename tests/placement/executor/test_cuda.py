from dataclasses import replace

import pytest
import torch

from segue.placement.discover import discover
from segue.placement.executor import launch
from segue.placement.topology import Topology, uniform_links
from tests.placement.executor import jobs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CASES = ["branches", "tied", "frozen"]


def shared() -> Topology:
    """Two workers on the first GPU, and one on the CPU."""
    found = discover()
    gpu = next(device for device in found.devices if device.kind == "cuda")
    halves = [replace(gpu, name=f"{gpu.name}-{half}", memory_bytes=gpu.memory_bytes / 2) for half in "ab"]
    cpu = replace(gpu, name="cpu", kind="cpu", speed=0.05, cores=(0,), model="", memory_bytes=8e9)
    names = [device.name for device in (*halves, cpu)]
    return Topology("shared-gpu", (*halves, cpu), uniform_links(names, 2e-4, 2e9))


@pytest.fixture(scope="module", params=["found", "shared"])
def runs(request: pytest.FixtureRequest) -> list:
    """Some cases on this machine's GPUs, or with workers that share one, never moved and moved at random."""
    topology = discover() if request.param == "found" else shared()
    return launch(jobs.compare_moving, topology, topology, CASES, timeout_s=250.0)


@pytest.mark.parametrize("case", CASES)
def test_training_on_gpus_equals_plain_pytorch_wherever_ops_move(runs: list, case: str) -> None:
    expected = jobs.plain(case)[0]
    for losses, state, _ in runs[0][case]:
        assert losses == pytest.approx(expected, rel=1e-3)
        assert all(tensor.device.type == "cpu" for tensor in state.values())
