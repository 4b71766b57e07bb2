"""The same run in plain single-process PyTorch, to compare losses with."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ..placement.training_step import TrainingStep


def plain_losses(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_fn: Callable[..., torch.Tensor] | None,
    batches: Iterable[Any],
    microbatch_size: int,
) -> Iterable[float]:
    """Train with an ordinary loop over microbatches; yields each step's mean loss.

    Args:
        model: in train mode; it is trained in place.
        optimizer: over its parameters.
        loss_fn: as the executor's.
        batches: tuples `(inputs, target)`.
        microbatch_size: samples in a full microbatch.
    """
    step = TrainingStep(model, loss_fn)
    for batch in batches:
        total = len(batch[0])
        loss_of_step = 0.0
        for micro in zip(*(tensor.split(microbatch_size) for tensor in batch), strict=True):
            weight = len(micro[0]) / total
            loss = step(micro)
            (loss * weight).backward()
            loss_of_step += weight * loss.item()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield loss_of_step
