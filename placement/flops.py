"""Floating-point operations of single aten ops."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

Shape = tuple[int, ...]


def forward_flops(kind: str, args: tuple[Any, ...], output: Any) -> float:
    """Multiply-adds count as two; ops without a formula as one per output element.

    Args:
        kind: the aten op's name without overload, `conv2d`.
        args: the op's positional arguments, tensors (real, fake or meta) in place.
        output: a tensor or a tuple of tensors.
    """
    formula = _FORMULAS.get(kind)
    return float(formula(args, output)) if formula else float(_numel(output))


def backward_flops(kind: str, forward: float, differentiated_inputs: int) -> float:
    """One forward's worth for each differentiated operand of a product, one for anything else."""
    return forward * (differentiated_inputs if kind in _FORMULAS else min(1, differentiated_inputs))


def is_product(func: Any) -> bool:
    """Whether a dispatched aten call is a product (a multiplication of matrices, a convolution, attention)."""
    return func.overloadpacket in flop_registry


def dispatched_flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> float:
    """The FLOPs of an aten call as it is dispatched, forward or backward, by PyTorch's own formulas.

    Args:
        func: the `OpOverload`; calls without a formula count one per output element.
        args: its positional arguments.
        kwargs: its keyword arguments.
        output: its result.
    """
    name = func._schema.name.rsplit("::")[-1]
    if name.startswith("mkldnn_rnn_layer"):
        passes = 2.0 if name.endswith("backward") else 1.0
        return passes * 2.0 * math.prod(args[0].shape[:-1]) * sum(weight.numel() for weight in args[1:3])
    formula = flop_registry.get(func.overloadpacket)
    return float(formula(*args, **kwargs, out_val=output)) if formula else float(_numel(output))


def _numel(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel()
    return sum(_numel(item) for item in value) if isinstance(value, list | tuple) else 0


def _convolution(args: tuple[Any, ...], output: Any) -> float:
    weight = args[1].shape
    return 2.0 * output.numel() * math.prod(weight[1:])


def _transposed(args: tuple[Any, ...], output: Any) -> float:
    return 2.0 * args[0].numel() * math.prod(args[1].shape[1:])


def _linear(args: tuple[Any, ...], output: Any) -> float:
    return 2.0 * output.numel() * args[1].shape[-1]


def _matmul(args: tuple[Any, ...], output: Any) -> float:
    return 2.0 * output.numel() * args[0].shape[-1]


def _addmm(args: tuple[Any, ...], output: Any) -> float:
    return 2.0 * output.numel() * args[1].shape[-1]


def _attention(args: tuple[Any, ...], output: Any) -> float:
    query, key, value = args[:3]
    scores = math.prod(query.shape[:-1]) * key.shape[-2]
    return 2.0 * scores * (query.shape[-1] + value.shape[-1])


def _recurrent(args: tuple[Any, ...], output: Any) -> float:
    steps = math.prod(args[0].shape[:-1])
    tensors = [item for arg in args if isinstance(arg, list | tuple) for item in arg if isinstance(item, torch.Tensor)]
    return 2.0 * steps * sum(weight.numel() for weight in tensors if weight.dim() == 2)


_FORMULAS: dict[str, Callable[[tuple[Any, ...], Any], float]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed),
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot"), _matmul),
    **dict.fromkeys(("addmm", "baddbmm"), _addmm),
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
}
