"""Gradient sums in one order, wherever ops run."""

from typing import Any

import torch


class _Fanout(torch.autograd.Function):
    """One value as several, a copy of the reference for each reader; backward adds the readers' gradients left to right."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, readers: int) -> tuple[torch.Tensor, ...]:  # pyright: ignore
        ctx.set_materialize_grads(False)
        return tuple(value.view_as(value) for _ in range(readers))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, None]:  # pyright: ignore
        return fold(grads), None


def fanout(value: torch.Tensor, readers: int) -> tuple[torch.Tensor, ...]:
    """`readers` references to `value` whose gradients are added in their order, first to last.

    Autograd adds the gradients of a value's readers from the last to the first; with the readers listed so, the sum is
    that of a plain backward pass, bit for bit, even when some of the readers are on other devices.
    """
    return _Fanout.apply(value, readers)  # pyright: ignore[reportReturnType]


def fold(grads: tuple[torch.Tensor | None, ...]) -> torch.Tensor | None:
    """The sum of the gradients that are there, left to right."""
    total = None
    for grad in grads:
        if grad is not None:
            total = grad if total is None else total + grad
    return total
