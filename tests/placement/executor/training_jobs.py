"""Training loops as real scripts have them, by the executor on every worker and in plain PyTorch."""

import copy
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim import lr_scheduler as schedulers

from segue.placement.clock import Span
from segue.placement.errors import SegueError
from segue.placement.executor import Executor
from segue.placement.placement import Placement, colocate
from segue.placement.topology import Topology

from . import jobs, models

STEPS = 6
MICRO_SIZE = 3


@dataclass(frozen=True)
class Loop:
    """One loop: its case of `jobs.CASES`, and what it does besides."""

    case: str
    optimizer: Callable[[Iterable[Any]], Optimizer]
    scheduler: Callable[[Optimizer], Any] | None = None
    max_grad_norm: float | None = None
    accumulate: int = 1
    autocast: torch.dtype | None = None
    loss_fn: Callable[..., Any] | None = None
    frozen_norm: bool = False
    groups: bool = False

    def build(self) -> tuple[nn.Module, Optimizer, Any, Callable[..., Any]]:
        """Model, optimizer, scheduler and loss, the same on every call."""
        build, _, loss_fn = jobs.CASES[self.case]
        torch.manual_seed(0)
        model = build().train()
        if self.frozen_norm:
            model.left[1].eval()
        optimizer = self.optimizer(_groups(model) if self.groups else model.parameters())
        scheduler = self.scheduler(optimizer) if self.scheduler else None
        return model, optimizer, scheduler, self.loss_fn or loss_fn

    def updates(self, step: int) -> bool:
        return (step + 1) % self.accumulate == 0


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    """Weights that decay and the others that do not, frozen ones among them."""
    weights = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    return [{"params": weights, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0, "lr": 3e-2}]


_adamw = partial(AdamW, lr=1e-2)
LOOPS = {
    "sgd": Loop("branches", partial(SGD, lr=0.1), max_grad_norm=0.3),
    "momentum": Loop(
        "branches",
        partial(SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
        partial(schedulers.StepLR, step_size=2, gamma=0.5),
    ),
    "adam": Loop("tied", partial(Adam, lr=1e-2), partial(schedulers.CosineAnnealingLR, T_max=STEPS), 0.5),
    "groups": Loop(
        "frozen",
        _adamw,
        partial(schedulers.OneCycleLR, max_lr=[2e-2, 4e-2], total_steps=STEPS),
        float("inf"),
        groups=True,
    ),
    "accumulation": Loop("branches", _adamw, max_grad_norm=0.5, accumulate=2),
    "accumulation, tied": Loop("tied", _adamw, max_grad_norm=0.5, accumulate=3),
    "frozen norm": Loop("branches", _adamw, frozen_norm=True),
    "metrics": Loop("branches", _adamw, loss_fn=models.loss_and_accuracy),
    "metrics in a tuple": Loop("frozen", _adamw, loss_fn=models.loss_and_mean),
    "autocast": Loop("branches", _adamw, max_grad_norm=1.0, autocast=torch.bfloat16),
    "autocast, accumulation": Loop("frozen", _adamw, autocast=torch.bfloat16, accumulate=2),
    "autocast, attention and a tied weight": Loop("tied", _adamw, autocast=torch.bfloat16),
    "dropout": Loop("dropout", _adamw, max_grad_norm=0.5),
}


@dataclass
class Run:
    """What a loop gave: by step, and at its end."""

    losses: list[float]
    norms: list[float | None]
    metrics: list[dict[str, float]]
    state: dict[str, torch.Tensor]
    optimizer_state: dict[str, Any]


def train(name: str, topology: Topology, moving_seeds: Iterable[int | None]) -> list[Run]:
    """The loop by the executor, begun anew with each seed: moved at random wherever no gradients wait, or never."""
    loop = LOOPS[name]
    model, optimizer, scheduler, loss_fn = loop.build()
    executor = Executor(
        model,
        optimizer=optimizer,
        loss_fn=loss_fn,
        example_batch=jobs.batch_of(loop.case, 0),
        topology=topology,
        microbatches=jobs.MICROBATCHES,
        seed=3,
        max_grad_norm=loop.max_grad_norm,
        autocast=loop.autocast,
    )
    begin, schedule = jobs.begin_anew(executor), copy.deepcopy(scheduler.state_dict()) if scheduler else {}
    runs = []
    for moving_seed in moving_seeds:
        begin()
        if scheduler is not None:
            scheduler.load_state_dict(copy.deepcopy(schedule))
        runs.append(_train_on(executor, loop, scheduler, moving_seed))
    return runs


def _train_on(executor: Executor, loop: Loop, scheduler: Any, moving_seed: int | None) -> Run:
    rng = np.random.default_rng(moving_seed)
    run = Run([], [], [], {}, {})
    for step in range(STEPS):
        if moving_seed is not None and not executor.pending:
            executor.apply(jobs.random_placement(executor, rng))
        batch = jobs.batch_of(loop.case, step)
        run.losses.append(executor.step(batch, update=loop.updates(step), scale=1 / loop.accumulate))
        run.norms.append(executor.grad_norm)
        run.metrics.append(executor.metrics)
        if scheduler is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                scheduler.step()
    run.state, run.optimizer_state = executor.state_dict(), executor.optimizer_state_dict()
    return run


def plain(name: str, autocast: bool = True) -> Run:
    """The loop in plain PyTorch, with or without its `autocast`."""
    loop = LOOPS[name]
    model, optimizer, scheduler, loss_fn = loop.build()
    run = Run([], [], [], {}, {})
    for step in range(STEPS):
        inputs, target = jobs.batch_of(loop.case, step)
        sums: dict[str, float] = {}
        for x, y in zip(inputs.split(MICRO_SIZE), target.split(MICRO_SIZE), strict=True):
            weight = len(x) / len(inputs)
            with torch.autocast("cpu", loop.autocast) if loop.autocast and autocast else nullcontext():
                output = loss_fn(model(x), y)
            if isinstance(output, torch.Tensor):
                output = {"loss": output}
            elif isinstance(output, tuple):
                output = {"loss": output[0], "1": output[1]}
            (output["loss"] * weight / loop.accumulate).backward()
            for key, value in output.items():
                sums[key] = sums.get(key, 0.0) + weight * value.item()
        norm = None
        if loop.updates(step):
            if loop.max_grad_norm is not None:
                norm = nn.utils.clip_grad_norm_(model.parameters(), loop.max_grad_norm).item()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if scheduler is not None:
            scheduler.step()
        run.losses.append(sums.pop("loss"))
        run.norms.append(norm)
        run.metrics.append(sums)
    run.state, run.optimizer_state = model.state_dict(), optimizer.state_dict()
    return run


def compare_loops(topology: Topology, names: list[str]) -> dict[str, list[Run]]:
    """For each loop: a run that never moves, and one that moves at random."""
    return {name: train(name, topology, (None, 1)) for name in names}


def move_with_pending_gradients(topology: Topology) -> tuple[str, list[float], list[float]]:
    """The message of a move between two accumulating steps; losses with the attempt and without."""
    messages, losses = [], []
    for attempt in (True, False):
        executor = jobs.make_executor("branches", topology)
        run = [executor.step(jobs.batch_of("branches", 0), update=False, scale=0.5)]
        if attempt:
            try:
                executor.apply(jobs.random_placement(executor, np.random.default_rng(0)))
            except SegueError as error:
                messages.append(str(error))
        run.append(executor.step(jobs.batch_of("branches", 1), scale=0.5))
        executor.apply(jobs.random_placement(executor, np.random.default_rng(0)))
        losses.append([*run, executor.step(jobs.batch_of("branches", 2))])
    return messages[0], *losses


def text_executor(topology: Topology, longest: int = 100) -> Executor:
    torch.manual_seed(0)
    model = models.TextLoss(longest).train()
    return Executor(
        model,
        optimizer=AdamW(model.parameters(), lr=1e-2),
        example_batch=models.text(0),
        topology=topology,
        microbatches=jobs.MICROBATCHES,
    )


LENGTHS = (5, 7, 7, 3, 5, 7)


def train_on_lengths(topology: Topology) -> list[tuple[list[float], list[float], dict[str, Any]]]:
    """Texts of several lengths, never moved and moved at random: losses, accuracies, and the state at the end."""
    runs = []
    for moving_seed in (None, 1):
        executor = text_executor(topology)
        rng = np.random.default_rng(moving_seed)
        losses, accuracies = [], []
        for step, length in enumerate(LENGTHS):
            if moving_seed is not None:
                executor.apply(jobs.random_placement(executor, rng))
            losses.append(executor.step(models.text(step, 5 if step == 2 else 8, length)))
            accuracies.append(executor.metrics["accuracy"])
        runs.append((losses, accuracies, executor.state_dict()))
    return runs


def plain_lengths() -> tuple[list[float], list[float], dict[str, Any]]:
    """`train_on_lengths` in plain PyTorch."""
    torch.manual_seed(0)
    model = models.TextLoss().train()
    optimizer = AdamW(model.parameters(), lr=1e-2)
    losses, accuracies = [], []
    for step, length in enumerate(LENGTHS):
        batch = models.text(step, 5 if step == 2 else 8, length)
        total, correct = 0.0, 0.0
        for text, target in zip(*(tensor.split(MICRO_SIZE) for tensor in batch.values()), strict=True):
            weight = len(text) / len(batch["text"])
            output = model(text=text, target=target)
            (output["loss"] * weight).backward()
            total += weight * output["loss"].item()
            correct += weight * output["accuracy"].item()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
        accuracies.append(correct)
    return losses, accuracies, model.state_dict()


def reject_batches(topology: Topology) -> list[str]:
    """Messages for batches that cannot be trained on; training goes on after each."""
    executor = text_executor(topology, longest=6)
    messages = []
    for batch in (
        models.text(0, length=7),
        {**models.text(0), "target": models.text(0)["target"].float()},
        {"text": models.text(0)["text"]},
        models.text(0, count=0),
    ):
        try:
            executor.step(batch)
            messages.append("")
        except SegueError as error:
            messages.append(str(error))
    executor.step(models.text(0))
    return messages


def one_sample_each(topology: Topology) -> tuple[list[float], list[float]]:
    """Losses of as many microbatches as there are samples, and of a plain loop over the samples."""
    model, optimizer, _, loss_fn = LOOPS["groups"].build()
    executor = Executor(
        model,
        optimizer=optimizer,
        loss_fn=loss_fn,
        example_batch=models.vectors(0),
        topology=topology,
        microbatches=8,
    )
    losses = [executor.step(models.vectors(step)) for step in range(2)]
    model, optimizer, _, loss_fn = LOOPS["groups"].build()
    expected = []
    for step in range(2):
        parts = [loss_fn(model(x[None]), y[None]) / 8 for x, y in zip(*models.vectors(step), strict=True)]
        sum(parts, torch.zeros(())).backward()
        optimizer.step()
        optimizer.zero_grad()
        expected.append(sum(part.item() for part in parts))
    return losses, expected


def clipped_timeline(topology: Topology) -> tuple[Span, ...]:
    """Every instruction of a clipped step of emulated devices that both have parameters."""
    model, optimizer, _, loss_fn = LOOPS["sgd"].build()
    executor = Executor(
        model,
        optimizer=optimizer,
        loss_fn=loss_fn,
        example_batch=models.images(0),
        topology=topology,
        microbatches=2,
        max_grad_norm=1.0,
    )
    half = (np.arange(executor.graph.num_ops) >= executor.graph.num_ops // 2).astype(np.int64)
    executor.apply(Placement(colocate(half, executor.graph), 2))
    executor.step(models.images(0), timeline=True)
    assert executor.report is not None
    return executor.report.timeline


def clip_to_nothing(topology: Topology) -> None:
    model, optimizer, _, loss_fn = LOOPS["sgd"].build()
    Executor(
        model,
        optimizer=optimizer,
        loss_fn=loss_fn,
        example_batch=models.images(0),
        topology=topology,
        max_grad_norm=-1.0,
    )
