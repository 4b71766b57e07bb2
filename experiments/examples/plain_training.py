"""What `--plain` runs: the examples' training step in plain PyTorch in one process, to compare losses with."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class PlainTraining:
    """Trains by an ordinary loop that accumulates the gradients of a batch's parts.

    Args:
        model: returns its loss if there is no `loss_fn`.
        optimizer: over its parameters.
        loss_fn: `loss_fn(model(inputs), target)` for batches `(inputs, target)`.
        microbatches: parts that a batch is cut into.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_fn: Callable[..., torch.Tensor] | None = None,
        microbatches: int = 1,
    ):
        self.model = model
        self.optimizer = optimizer
        self.loss_fn = loss_fn
        self.microbatches = microbatches

    def step(self, batch: Any) -> float:
        """Train on one batch; returns its mean loss."""
        total = 0.0
        for part in split(batch, self.microbatches):
            loss = self.loss(part)
            (loss / self.microbatches).backward()
            total += loss.item() / self.microbatches
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total

    def eval(self, batch: Any) -> float:
        """The mean loss of a batch in evaluation mode."""
        self.model.eval()
        with torch.no_grad():
            loss = self.loss(batch).item()
        self.model.train()
        return loss

    def loss(self, batch: Any) -> torch.Tensor:
        """The loss of a batch, or of a part of one."""
        if self.loss_fn is None:
            return self.model(**batch).loss
        inputs, target = batch
        return self.loss_fn(self.model(inputs), target)


def split(batch: Any, parts: int) -> list[Any]:
    """A tuple or dict of tensors as equal parts of its batch dimension."""
    tensors = list(batch.values() if isinstance(batch, dict) else batch)
    pieces = zip(*(tensor.chunk(parts) for tensor in tensors), strict=True)
    return [dict(zip(batch, piece, strict=True)) if isinstance(batch, dict) else piece for piece in pieces]
