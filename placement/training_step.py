"""`TrainingStep`: a model and its loss as one module."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class TrainingStep(nn.Module):
    """A model and its loss as one module from batch to scalar loss.

    With `loss_fn`, a batch is `(inputs, target)` and the loss `loss_fn(model(inputs), target)`; `inputs` may be a tensor,
    a tuple of positional or a dict of keyword arguments. Without, the model itself returns the loss (as a tensor, a
    `loss` attribute or a `"loss"` entry) and the batch's entries are its arguments.
    """

    def __init__(self, model: nn.Module, loss_fn: Callable[..., torch.Tensor] | None = None):
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn

    def forward(self, batch: Any) -> torch.Tensor:
        """The loss of one batch, a scalar."""
        if self.loss_fn is not None:
            inputs, target = batch
            return self.loss_fn(_call(self.model, inputs), target)
        output = _call(self.model, batch)
        if isinstance(output, torch.Tensor):
            return output
        return output["loss"] if isinstance(output, dict) else output.loss


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)
