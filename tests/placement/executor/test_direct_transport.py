import pytest
import torch

from segue.placement.executor import launch
from segue.placement.executor.direct_transport import can_go_direct
from segue.placement.topology import Device, Topology, uniform_links
from tests.placement.executor import jobs

pytestmark = pytest.mark.timeout(400)
CASES = ["branches", "tied", "dag-0", "dag-1"]


def devices_of(*devices: Device) -> Topology:
    return Topology("drawn", devices, uniform_links([device.name for device in devices], 1e-4, 1e9))


@pytest.fixture(scope="module")
def runs() -> list:
    """Some cases on three devices, never moved and moved at random, without tags."""
    topology = devices_of(*(Device(f"cpu{i}", "cpu", 1e9) for i in range(3)))
    return launch(jobs.compare_moving_directly, topology, topology, CASES, timeout_s=150.0)


@pytest.mark.parametrize("case", CASES)
def test_messages_matched_by_their_order_alone_change_no_bit(runs: list, case: str) -> None:
    jobs.assert_same_bits(runs[0][case])


@pytest.mark.parametrize("case", CASES)
def test_training_without_tags_equals_plain_pytorch(runs: list, case: str) -> None:
    torch.set_num_threads(1)
    assert runs[0][case][0][0] == pytest.approx(jobs.plain(case)[0], rel=1e-6)


def test_only_gpus_with_a_worker_each_exchange_directly() -> None:
    first, second = Device("a", "cuda", 1e9, index=0), Device("b", "cuda", 1e9, index=1)
    assert can_go_direct(devices_of(first, second))
    assert can_go_direct(devices_of(first, Device("b", "cuda", 1e9, index=0, host="other")))
    assert not can_go_direct(devices_of(first, Device("b", "cuda", 1e9, index=0)))
    assert not can_go_direct(devices_of(first, second, Device("c", "cpu", 1e9)))
    assert not can_go_direct(devices_of(first))
