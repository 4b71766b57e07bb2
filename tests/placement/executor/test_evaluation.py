"""Evaluation on the placement that training is on: as plain PyTorch's, and training does not notice."""

import pytest
import torch

from segue.placement.executor import launch
from tests.placement.executor import evaluation_jobs
from tests.placement.executor.test_executor import LIMIT_S, cpu_devices

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def runs() -> list[list[dict]]:
    """Never moved, moved at random, and never evaluated; one entry a worker."""
    return launch(evaluation_jobs.compare, cpu_devices(3), cpu_devices(3), timeout_s=LIMIT_S)


def test_an_evaluation_equals_plain_pytorch_in_eval_mode(runs: list) -> None:
    torch.set_num_threads(1)
    for run in runs[0][:2]:
        assert len(run["evaluations"]) == evaluation_jobs.STEPS
        for step, (loss, metrics, state) in enumerate(run["evaluations"]):
            expected, their_metrics = evaluation_jobs.plain_evaluation(step, state)
            assert loss == pytest.approx(expected, rel=1e-6)
            assert metrics == pytest.approx(their_metrics, rel=1e-6)


def test_an_evaluation_gives_the_same_bits_wherever_ops_are_and_on_every_worker(runs: list) -> None:
    still, moved, _ = runs[0]
    results = [[evaluation[:2] for evaluation in run["evaluations"]] for run in (still, moved, runs[1][0], runs[2][1])]
    assert all(result == results[0] for result in results)


def test_training_goes_on_as_if_there_had_been_no_evaluation(runs: list) -> None:
    still, moved, untouched = runs[0]
    for run in (still, moved):
        assert run["losses"] == untouched["losses"]
        assert all(torch.equal(run["state"][name], tensor) for name, tensor in untouched["state"].items())
        assert run["modes"] == {True}


def test_parameters_and_buffers_stay_where_they_are() -> None:
    results = launch(evaluation_jobs.travels, cpu_devices(2), cpu_devices(2), timeout_s=LIMIT_S)
    for ((after, owned),) in results:
        assert after == owned
        assert after


def test_what_evaluation_reads_together_but_training_does_not_is_named() -> None:
    message, loss = launch(evaluation_jobs.evaluate_what_is_apart, cpu_devices(2), cpu_devices(2), timeout_s=LIMIT_S)[0]
    assert "op add reads second.bias on device 1 and offset on device 0" in message
    assert "\n" not in message
    assert loss > 0


def test_an_evaluation_runs_under_the_executors_autocast() -> None:
    loss, expected, exact = launch(
        evaluation_jobs.evaluate_under_autocast, cpu_devices(2), cpu_devices(2), timeout_s=LIMIT_S
    )[0]
    assert abs(loss - expected) < 0.5 * abs(exact - expected)
