import pytest
import torch

from segue.placement.discover import discover
from segue.placement.executor import launch
from tests.placement.executor import jobs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CASES = ["branches", "tied", "frozen"]


@pytest.fixture(scope="module")
def runs() -> list:
    """Some cases on this machine's GPUs (and its CPU beside a single one), never moved and moved at random."""
    topology = discover()
    return launch(jobs.compare_moving, topology, topology, CASES, timeout_s=250.0)


@pytest.mark.parametrize("case", CASES)
def test_training_on_gpus_equals_plain_pytorch_wherever_ops_move(runs: list, case: str) -> None:
    expected = jobs.plain(case)[0]
    for losses, state, _ in runs[0][case]:
        assert losses == pytest.approx(expected, rel=1e-3)
        assert all(tensor.device.type == "cpu" for tensor in state.values())
