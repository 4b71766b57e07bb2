"""`TrainingStep`: a model and its loss as one module."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from .errors import SegueError


class TrainingStep(nn.Module):
    """A model and its loss as one module from batch to scalar loss.

    With `loss_fn`, a batch is `(inputs, target)` and the loss `loss_fn(model(inputs), target)`; `inputs` may be a tensor,
    a tuple of positional or a dict of keyword arguments. Without, the model itself returns the loss and the batch's
    entries are its arguments. Who returns the loss may return more: a dict with an entry (or an object with an
    attribute) `loss`, or a tuple that begins with the loss. Other scalars there are metrics (see `results`).

    Args:
        model: the model.
        loss_fn: the loss, if the model does not return it.
        autocast: run model and loss under `torch.autocast` in this type, on the model's kind of device.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., Any] | None = None,
        autocast: torch.dtype | None = None,
    ):
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn
        self.autocast = autocast

    def forward(self, batch: Any) -> torch.Tensor:
        """The loss of one batch, a scalar."""
        return self.results(batch)[0]

    def results(self, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of one batch, and the scalars that came with it by name (in a tuple, by position from "1" on)."""
        with self._precision():
            if self.loss_fn is None:
                return _loss_and_metrics(_call(self.model, batch))
            inputs, target = batch
            return _loss_and_metrics(self.loss_fn(_call(self.model, inputs), target))

    def _precision(self) -> Any:
        if self.autocast is None:
            return nullcontext()
        first = next(self.model.parameters(), None)
        return torch.autocast(first.device.type if first is not None else "cpu", self.autocast)


def _loss_and_metrics(output: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    if isinstance(output, torch.Tensor):
        return output, {}
    if isinstance(output, tuple | list):
        output = {"loss": output[0], **{str(i): value for i, value in enumerate(output) if i}}
    if not isinstance(output, dict):
        return output.loss, {}
    if "loss" not in output:
        raise SegueError(f"loss: expected an entry 'loss' in what is returned, got {', '.join(map(str, output))}")
    scalars = {k: v for k, v in output.items() if isinstance(v, torch.Tensor) and v.dim() == 0 and k != "loss"}
    return output["loss"], {str(name): value for name, value in scalars.items()}


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)
