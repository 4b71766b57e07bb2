import pytest
import torch

from segue.placement.executor import launch
from tests.placement.executor import move_jobs
from tests.placement.executor.test_executor import cpu_devices

pytestmark = pytest.mark.timeout(240)
LIMIT_S = 200.0


@pytest.fixture(scope="module")
def failures() -> list:
    """Moves that fail at every stage on every one of three workers; one entry a worker."""
    topology = cpu_devices(3)
    return launch(move_jobs.fail_at_every_stage, topology, topology, "branches", timeout_s=LIMIT_S)


@pytest.mark.parametrize("stage", move_jobs.STAGES)
def test_a_move_that_fails_anywhere_leaves_every_worker_as_it_was_and_then_succeeds(failures: list, stage: str) -> None:
    for worker in failures:
        mine = [outcome for outcome in worker["outcomes"] if outcome[0] == stage]
        assert [rank for _, rank, *_ in mine] == [0, 1, 2]
        for _, rank, message, kept, again, arrived in mine:
            assert message.startswith(f"worker {rank}: injected (RuntimeError while ")
            assert "\n" not in message
            assert kept
            assert again == ""
            assert arrived


def test_training_with_failed_moves_is_training_without_moves(failures: list) -> None:
    for worker in failures:
        assert worker["losses"] == worker["expected"]
        moved, still = worker["state"]
        assert all(torch.equal(moved[name], still[name]) for name in still)


def test_a_move_that_does_not_fit_is_refused_before_anything_travels() -> None:
    topology = cpu_devices(2)
    for result in launch(move_jobs.move_to_small_devices, topology, topology, timeout_s=LIMIT_S):
        refused, one_byte_short, enough = result["messages"]
        assert enough == ""
        assert f"{result['need']} bytes" in refused
        assert f"device cpu1: {result['need']} bytes" in one_byte_short
        assert "MemoryError" in refused
        assert result["losses"] == result["expected"]
    # What a step needs is more than what is kept between steps: the activations count.
    assert 0 < result["owned"] < result["need"]


def test_what_stays_is_not_touched() -> None:
    topology = cpu_devices(3)
    first, second, third = launch(move_jobs.move_a_little, topology, topology, timeout_s=LIMIT_S)
    assert first["moved"] == second["moved"] != []
    assert third["moved"] == []
    assert first["bytes"] > 0
    for worker in (first, second, third):
        assert worker["tensors"]
        assert worker["optimizer"]
    assert third["segments"]


@pytest.mark.slow
def test_no_sequence_of_moves_of_any_model_changes_a_bit() -> None:
    topology = cpu_devices(3)
    assert launch(move_jobs.never_changes_a_bit, topology, topology, 12, timeout_s=LIMIT_S)[0] >= 12
