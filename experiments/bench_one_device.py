"""The executor on one device against plain PyTorch with the same microbatches, on the same core."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from ..placement.cores import usable_cores
from ..placement.errors import SegueError
from ..placement.executor import Executor, launch
from ..placement.topology import Device, Topology
from .measure import MeasureJob
from .turns import Floats, median_ratio, take_turns
from .zoo.example import Example

HEADERS = (
    "model",
    "batch",
    "forward+backward of a microbatch (ms)",
    "plain (ms)",
    "executor (ms)",
    "ratio",
    "quartiles",
)
SAME_LOSS = 1e-3
"""Relative difference of the losses up to which both have trained the same."""


def one_device_row(job: MeasureJob) -> tuple[Any, ...]:
    """A row of `HEADERS` for one model; `job.rounds` steps of each, in turns.

    Raises:
        SegueError: if the two did not train the same.
    """
    core = usable_cores()[0]
    topology = Topology("one-core", (Device(f"core{core}", "cpu", 64e9, cores=(core,)),))
    times, losses = launch(_work, topology, job, topology)[0]
    plain, ours = (np.array(losses[name]) for name in ("plain", "executor"))
    if not np.allclose(ours, plain, rtol=SAME_LOSS):
        raise SegueError(f"{job.model}: the executor's losses {ours} are not those of plain PyTorch, {plain}")
    ratios = np.percentile(times["executor"] / times["plain"], [25, 75])
    seconds = float(np.median(times["plain"]))
    return (
        job.model,
        f"{job.microbatches} x {-(-job.batch_size // job.microbatches)}",
        f"{1e3 * seconds / job.microbatches:.1f}",
        f"{1e3 * seconds:.1f}",
        f"{1e3 * np.median(times['executor']):.1f}",
        f"{median_ratio(times, 'executor', 'plain'):.3f}",
        f"{ratios[0]:.3f} to {ratios[1]:.3f}",
    )


def _work(job: MeasureJob, topology: Topology) -> tuple[dict[str, Floats], dict[str, list[float]]]:
    """Both in one worker; returns the times of every round, and the losses of every step."""
    ours, plain = (job.example() for _ in range(2))
    executor = Executor(
        ours.step.model,
        optimizer=_optimizer(ours),
        loss_fn=ours.step.loss_fn,
        example_batch=ours.batch,
        topology=topology,
        microbatches=job.microbatches,
    )
    losses: dict[str, list[float]] = {"plain": [], "executor": []}
    plain_step = make_plain_step(plain, _optimizer(plain), job.microbatches)
    ways = {
        "plain": lambda: losses["plain"].append(plain_step()),
        "executor": lambda: losses["executor"].append(executor.step(ours.batch)),
    }
    return take_turns(ways, job.rounds), losses


def _optimizer(example: Example) -> torch.optim.Optimizer:
    # Small steps keep losses comparable over many of them, and cost the same as large ones.
    return torch.optim.AdamW(example.step.model.parameters(), lr=1e-5)


def make_plain_step(example: Example, optimizer: torch.optim.Optimizer, microbatches: int) -> Callable[[], float]:
    """The training step that people write: microbatches, gradients added up, one update; returns the mean loss."""
    leaves, spec = pytree.tree_flatten(example.batch)
    total = len(leaves[0])
    size = -(-total // microbatches)

    def step() -> float:
        loss_of_step = 0.0
        for parts in zip(*(leaf.split(size) for leaf in leaves), strict=True):
            weight = len(parts[0]) / total
            loss = example.step(pytree.tree_unflatten(list(parts), spec))
            (loss * weight).backward()
            loss_of_step += weight * loss.item()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss_of_step

    return step
