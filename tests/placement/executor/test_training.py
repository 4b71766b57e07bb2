"""What real training loops use: the executor's equals plain PyTorch's, and is the same bits wherever ops are."""

import pytest
import torch

from segue.placement.errors import SegueError
from segue.placement.executor import launch
from tests.placement.executor import training_jobs
from tests.placement.executor.test_executor import LIMIT_S, cpu_devices, emulated_devices
from tests.placement.executor.training_jobs import LOOPS, Run

pytestmark = pytest.mark.timeout(400)
BFLOAT16 = [name for name, loop in LOOPS.items() if loop.autocast]


@pytest.fixture(scope="module")
def runs() -> list[dict[str, list[Run]]]:
    """Every loop, never moved and moved at random, on three devices; one entry a worker."""
    return launch(training_jobs.compare_loops, cpu_devices(3), cpu_devices(3), list(LOOPS), timeout_s=LIMIT_S)


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_gives_the_same_bits_wherever_its_ops_are(runs: list, name: str) -> None:
    still, moved = runs[0][name]
    assert moved.losses == still.losses
    assert moved.norms == still.norms
    assert moved.metrics == still.metrics
    assert_same(moved.state, still.state)
    for number, entries in still.optimizer_state["state"].items():
        assert_same(moved.optimizer_state["state"][number], entries)


@pytest.mark.parametrize("name", [name for name in LOOPS if name not in [*BFLOAT16, "dropout"]])
def test_a_loop_equals_plain_pytorch(runs: list, name: str) -> None:
    run, expected = runs[0][name][0], plain(name)
    assert run.losses == pytest.approx(expected.losses, rel=1e-6)
    assert [norm is None for norm in run.norms] == [norm is None for norm in expected.norms]
    assert list(filter(None, run.norms)) == pytest.approx(list(filter(None, expected.norms)), rel=1e-5)
    for metrics, theirs in zip(run.metrics, expected.metrics, strict=True):
        assert list(metrics) == list(theirs)
        assert metrics == pytest.approx(theirs, rel=1e-5, abs=1e-6)
    for key, tensor in expected.state.items():
        torch.testing.assert_close(run.state[key], tensor, rtol=1e-5, atol=1e-6)
    assert run.optimizer_state["param_groups"] == expected.optimizer_state["param_groups"]
    assert run.optimizer_state["state"].keys() == expected.optimizer_state["state"].keys()


@pytest.mark.parametrize("name", BFLOAT16)
def test_autocast_equals_plain_pytorch_under_autocast(runs: list, name: str) -> None:
    run, expected, exact = runs[0][name][0], plain(name), training_jobs.plain(name, autocast=False)
    assert run.losses == pytest.approx(expected.losses, rel=1e-2)
    # It is autocast that ran: closer to it than to the same loop in float32.
    assert max_distance(run.losses, expected.losses) < 0.5 * max_distance(exact.losses, expected.losses)
    for key, tensor in expected.state.items():
        torch.testing.assert_close(run.state[key], tensor, rtol=3e-2, atol=3e-2)


def test_clipping_reduces_the_norm_that_it_reports(runs: list) -> None:
    for name, loop in LOOPS.items():
        norms = [norm for norm in runs[0][name][0].norms if norm is not None]
        if loop.max_grad_norm is None:
            assert not norms
        elif loop.max_grad_norm < float("inf"):
            assert max(norms) > loop.max_grad_norm, f"{name}: nothing was clipped"


def test_every_worker_has_the_same_losses_norms_and_metrics(runs: list) -> None:
    for other in runs[1:]:
        for name in LOOPS:
            mine, theirs = runs[0][name][0], other[name][0]
            assert (mine.losses, mine.norms, mine.metrics) == (theirs.losses, theirs.norms, theirs.metrics)


def test_gradients_that_wait_for_an_update_forbid_a_move_and_are_kept() -> None:
    result = launch(training_jobs.move_with_pending_gradients, cpu_devices(2), cpu_devices(2), timeout_s=LIMIT_S)[0]
    message, attempted, straight = result
    assert "gradients wait for an update" in message
    assert "\n" not in message
    assert attempted == straight


def test_clipped_updates_of_emulated_devices_wait_for_the_last_backward_of_all() -> None:
    spans = launch(training_jobs.clipped_timeline, emulated_devices(2), emulated_devices(2), timeout_s=LIMIT_S)[0]
    last_backward = max(span.end_s for span in spans if span.name.startswith("B"))
    updates = [span for span in spans if span.name == "update"]
    assert {span.lane for span in updates} == {"dev0", "dev1"}
    assert all(span.start_s >= last_backward - 1e-9 for span in updates)


def test_texts_of_other_lengths_are_trained_on_as_in_plain_pytorch() -> None:
    still, moved = launch(training_jobs.train_on_lengths, cpu_devices(3), cpu_devices(3), timeout_s=LIMIT_S)[0]
    assert moved[:2] == still[:2]
    assert_same(moved[2], still[2])
    torch.set_num_threads(1)
    losses, accuracies, state = training_jobs.plain_lengths()
    assert still[0] == pytest.approx(losses, rel=1e-6)
    assert still[1] == pytest.approx(accuracies, rel=1e-6)
    for key, tensor in state.items():
        torch.testing.assert_close(still[2][key], tensor, rtol=1e-5, atol=1e-6)


def test_batches_that_cannot_be_trained_on_are_refused_with_the_reason() -> None:
    messages = launch(training_jobs.reject_batches, cpu_devices(1), cpu_devices(1), timeout_s=LIMIT_S)[0]
    for message, reason in zip(messages, ("other ops", "float32", "structured", "empty"), strict=True):
        assert reason in message
        assert "\n" not in message


def test_there_may_be_as_many_microbatches_as_samples() -> None:
    losses, expected = launch(training_jobs.one_sample_each, cpu_devices(1), cpu_devices(1), timeout_s=LIMIT_S)[0]
    assert losses == pytest.approx(expected, rel=1e-6)


def test_a_norm_that_is_not_positive_is_refused() -> None:
    with pytest.raises(SegueError, match=r"^max_grad_norm must be > 0 .* got -1.0$"):
        launch(training_jobs.clip_to_nothing, cpu_devices(1), cpu_devices(1), timeout_s=LIMIT_S)


def plain(name: str) -> Run:
    torch.set_num_threads(1)
    return training_jobs.plain(name)


def assert_same(mine: dict, theirs: dict) -> None:
    assert mine.keys() == theirs.keys()
    for key, value in theirs.items():
        assert torch.equal(mine[key], value) if isinstance(value, torch.Tensor) else mine[key] == value


def max_distance(mine: list[float], theirs: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(mine, theirs, strict=True))
