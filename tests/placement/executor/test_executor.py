import multiprocessing

import pytest
import torch

from segue.placement.errors import SegueError
from segue.placement.executor import WorkerFailed, launch
from segue.placement.topology import Device, Topology, uniform_links
from tests.placement.executor import jobs

pytestmark = pytest.mark.timeout(300)
LIMIT_S = 150.0


def cpu_devices(count: int) -> Topology:
    devices = tuple(Device(f"cpu{i}", "cpu", 1e9) for i in range(count))
    return Topology("cpus", devices, uniform_links([d.name for d in devices], 1e-4, 1e9))


def emulated_devices(count: int, memory_bytes: float = 1e9) -> Topology:
    devices = tuple(Device(f"dev{i}", "emulated", memory_bytes, 0.02) for i in range(count))
    return Topology("emulated", devices, uniform_links([d.name for d in devices], 1e-3, 1e8))


@pytest.fixture(scope="module")
def runs() -> list:
    """Every case, never moved and moved at random, on three devices; one entry a worker."""
    return launch(jobs.compare_moving, cpu_devices(3), cpu_devices(3), list(jobs.CASES), timeout_s=LIMIT_S)


@pytest.mark.parametrize("case", jobs.CASES)
def test_moving_changes_no_bit_of_losses_parameters_and_optimizer_state(runs: list, case: str) -> None:
    jobs.assert_same_bits(runs[0][case])


@pytest.mark.parametrize("case", [case for case in jobs.CASES if case != "dropout"])
def test_training_equals_plain_pytorch(runs: list, case: str) -> None:
    losses, state, optimizer_state = runs[0][case][0]
    torch.set_num_threads(1)
    expected, model, optimizer = jobs.plain(case)
    assert losses == pytest.approx(expected, rel=1e-6)
    plain = model.state_dict()
    assert list(state) == list(plain)
    for name, tensor in plain.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-5, atol=1e-6)
    model.load_state_dict(state)
    optimizer.load_state_dict(optimizer_state)


def test_every_worker_returns_the_same_loss_and_state(runs: list) -> None:
    for case in jobs.CASES:
        for other in runs[1:]:
            assert other[case][0][0] == runs[0][case][0][0]


def test_a_saved_run_continues_on_other_devices_as_if_it_had_never_stopped() -> None:
    straight, continued = launch(jobs.save_and_load, cpu_devices(2), cpu_devices(2), timeout_s=LIMIT_S)[0]
    assert continued == straight


def test_a_move_that_fails_on_one_worker_changes_nothing_anywhere(runs: list) -> None:
    results = launch(jobs.fail_in_a_move, cpu_devices(2), cpu_devices(2), timeout_s=LIMIT_S)
    for result in results:
        assert "worker 1: injected" in result["message"]
        assert result["kept"]
        assert result["losses"] == runs[0]["branches"][0][0]
        assert result["bytes"] > 0


def test_bad_calls_are_refused_and_training_goes_on() -> None:
    messages = launch(jobs.reject_bad_calls, cpu_devices(1), cpu_devices(1), timeout_s=LIMIT_S)[0]
    for message, field in zip(messages, ("shape", "structured", "devices", "microbatches", "stem.weight"), strict=True):
        assert field in message
        assert "\n" not in message


def test_measured_clock_trains_while_it_measures(runs: list) -> None:
    result = launch(jobs.measured_clock, cpu_devices(2), cpu_devices(2), timeout_s=LIMIT_S)[0]
    assert result["losses"] == runs[0]["branches"][0][0]
    assert result["sources"] == {"measured"}


def test_a_device_that_is_too_small_is_named_with_its_ops() -> None:
    small = emulated_devices(1, memory_bytes=8_000)
    with pytest.raises(WorkerFailed, match=r"dev0: .* MiB needed for microbatch 0 of ops conv2d"):
        launch(jobs.overflow, small, small, timeout_s=LIMIT_S)


def test_links_between_real_workers_are_measured() -> None:
    before = cpu_devices(2)
    after = launch(jobs.links, before, before, timeout_s=LIMIT_S)
    assert after[0] == after[1]
    assert all(link.latency_s > 0 and link.bandwidth_bytes_per_s > 1e6 for link in after[0].links)
    assert after[0] != before


def test_a_killed_worker_ends_all_and_is_named() -> None:
    with pytest.raises(WorkerFailed, match=r"worker 1 \(cpu1\) was killed by SIGKILL"):
        launch(jobs.die, cpu_devices(2), cpu_devices(2), 1, timeout_s=LIMIT_S)
    assert not multiprocessing.active_children()


def test_a_users_error_in_a_worker_is_raised_as_such() -> None:
    with pytest.raises(SegueError, match=r"^model: too strange$"):
        launch(jobs.complain, cpu_devices(1), cpu_devices(1), timeout_s=LIMIT_S)


def test_workers_that_hang_are_stopped_when_the_time_is_up() -> None:
    with pytest.raises(WorkerFailed, match="did not end within 3 s"):
        launch(jobs.hang, cpu_devices(1), cpu_devices(1), timeout_s=3.0)
    assert not multiprocessing.active_children()
