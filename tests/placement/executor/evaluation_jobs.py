"""Training with evaluations in between, by the executor on every worker."""

from typing import Any

import numpy as np
import torch
from torch import nn

from segue.placement.errors import SegueError
from segue.placement.executor import Executor
from segue.placement.placement import Placement, colocate
from segue.placement.topology import Topology

from . import jobs, models

STEPS = 4
HELD_OUT = 10
"""Samples of the batches that are evaluated: more than a training batch has, and not a multiple of a microbatch."""


def _executor(topology: Topology, **arguments: Any) -> Executor:
    torch.manual_seed(0)
    model = models.Branches(dropout=0.5).train()
    return Executor(
        model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2),
        loss_fn=models.loss_and_accuracy,
        example_batch=models.images(0),
        topology=topology,
        microbatches=jobs.MICROBATCHES,
        **arguments,
    )


def held_out(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    return models.images(100 + step, HELD_OUT)


def train_and_evaluate(topology: Topology, moving_seed: int | None, evaluate: bool) -> dict[str, Any]:
    """Losses, evaluations with the state at each, and the modes of the model's modules at the end."""
    executor = _executor(topology)
    rng = np.random.default_rng(moving_seed)
    losses, evaluations = [], []
    for step in range(STEPS):
        if moving_seed is not None:
            executor.apply(jobs.random_placement(executor, rng))
        # Between two accumulating steps as well.
        losses.append(executor.step(models.images(step), update=step != 1))
        report = executor.report
        if evaluate:
            loss = executor.eval(held_out(step))
            evaluations.append((loss, executor.metrics, executor.state_dict()))
            assert executor.report is report
        if executor.pending:
            losses.append(executor.step(models.images(step)))
    modes = {module.training for module in executor.model.modules()}
    return {"losses": losses, "evaluations": evaluations, "state": executor.state_dict(), "modes": modes}


def compare(topology: Topology) -> list[dict[str, Any]]:
    """Never moved, moved at random, and never moved without evaluations."""
    return [train_and_evaluate(topology, *options) for options in ((None, True), (1, True), (None, False))]


def plain_evaluation(step: int, state: dict[str, torch.Tensor]) -> tuple[float, dict[str, float]]:
    """Loss and metrics of a plain model in `eval()` mode with this state."""
    model = models.Branches(dropout=0.5).eval()
    model.load_state_dict(state)
    inputs, target = held_out(step)
    sums: dict[str, float] = {}
    with torch.no_grad():
        for x, y in zip(inputs.split(3), target.split(3), strict=True):
            for key, value in models.loss_and_accuracy(model(x), y).items():
                sums[key] = sums.get(key, 0.0) + value.item() * len(x) / HELD_OUT
    return sums.pop("loss"), sums


def travels(topology: Topology) -> list[tuple[set[str], set[str]]]:
    """What each worker owns after an evaluation, beside what its device's ops own."""
    executor = _executor(topology)
    half = (np.arange(executor.graph.num_ops) >= executor.graph.num_ops // 2).astype(np.int64)
    executor.apply(Placement(colocate(half, executor.graph), jobs.MICROBATCHES))
    executor.eval(held_out(0))
    mine = set(executor._state.tensors)
    return [(mine, set(executor._state.owned_by(executor.rank, executor.placement.devices.tolist())))]


class Norms(nn.Module):
    """A buffer that only evaluation reads, together with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(7, 5)
        self.second = nn.Linear(5, 5)
        self.register_buffer("offset", torch.ones(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.second.bias if self.training else self.second.bias + self.offset
        return nn.functional.linear(torch.relu(self.first(x)), self.second.weight, weight)


def evaluate_what_is_apart(topology: Topology) -> tuple[str, float]:
    """The message where evaluation reads together what is on two devices; and a loss of training that goes on."""
    torch.manual_seed(0)
    model = Norms()
    executor = Executor(
        model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        loss_fn=nn.CrossEntropyLoss(),
        example_batch=models.vectors(0),
        topology=topology,
    )
    half = (np.arange(executor.graph.num_ops) >= 1).astype(np.int64)
    executor.apply(Placement(colocate(half, executor.graph), 1))
    message = ""
    try:
        executor.eval(models.vectors(0))
    except SegueError as error:
        message = str(error)
    return message, executor.step(models.vectors(0))


def evaluate_under_autocast(topology: Topology) -> tuple[float, float, float]:
    """An evaluation under autocast by the executor, by plain PyTorch, and by plain PyTorch without."""
    executor = _executor(topology, autocast=torch.bfloat16)
    executor.step(models.images(0))
    executor.apply(jobs.random_placement(executor, np.random.default_rng(0)))
    loss, state = executor.eval(held_out(0)), executor.state_dict()
    exact = plain_evaluation(0, state)[0]
    with torch.autocast("cpu", torch.bfloat16):
        return loss, plain_evaluation(0, state)[0], exact
