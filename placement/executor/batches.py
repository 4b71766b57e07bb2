"""Batches: a model captured for one microbatch, and batches cut into microbatches."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..capture import capture_program
from ..costs import part_sizes
from ..errors import SegueError
from ..program import Program
from ..training_step import TrainingStep


@dataclass(frozen=True, eq=False)
class CapturedStep:
    """A model and its loss, captured for microbatches of one form.

    Attributes:
        program: of one microbatch.
        metrics: the op that computes each metric, by the metric's name.
        example: the tensors of the microbatch that it was captured with.
        constants: the batch's leaves that are not tensors; they are built into the program.
    """

    program: Program
    metrics: dict[str, int]
    example: list[torch.Tensor]
    constants: list[Any]

    def tensors(self, parts: "Parts") -> list[list[torch.Tensor]]:
        """The tensors of every microbatch.

        Raises:
            SegueError: if they are not of the form that was captured.
        """
        # All between the first and the last are like the first.
        for number in sorted({0, len(parts.leaves) - 1}):
            self._check(parts.micro(number))
        return [[leaf for leaf in leaves if isinstance(leaf, torch.Tensor)] for leaves in parts.leaves]

    def _check(self, micro: Any) -> None:
        tensors = self.program.flatten(micro)
        for position, (tensor, example) in enumerate(zip(tensors, self.example, strict=True)):
            if tensor.dtype != example.dtype:
                raise SegueError(f"batch: tensor {position} is {tensor.dtype}, captured with {example.dtype}")
        constants = _constants(micro)
        if constants != self.constants:
            raise SegueError(f"batch: its plain values are {constants}, captured with {self.constants}")


class Parts(NamedTuple):
    """A batch cut into microbatches.

    Attributes:
        leaves: of each microbatch's tree.
        spec: how they make a tree.
    """

    leaves: list[list[Any]]
    spec: pytree.TreeSpec

    def micro(self, number: int) -> Any:
        """A microbatch, structured like the batch."""
        return pytree.tree_unflatten(self.leaves[number], self.spec)


def _constants(micro: Any) -> list[Any]:
    return [leaf for leaf in pytree.tree_leaves(micro) if not isinstance(leaf, torch.Tensor)]


class _Call(nn.Module):
    """A function of a batch that calls a model, as a module."""

    def __init__(self, model: nn.Module, function: Callable[[Any], tuple[torch.Tensor, ...]]):
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, batch: Any) -> tuple[torch.Tensor, ...]:
        return self.function(batch)


def capture_step(step: TrainingStep, micro: Any, training: bool) -> CapturedStep:
    """Capture a model and its loss for microbatches like this one.

    Args:
        step: the model and its loss; the model's modes are as they were afterwards.
        micro: a microbatch of full size.
        training: whether to train it, in the modes that its modules are in, or only to evaluate it, in `eval()` mode.

    Raises:
        SegueError: if it cannot be captured.
    """
    names: list[str] = []

    def results(batch: Any) -> tuple[torch.Tensor, ...]:
        loss, metrics = step.results(batch)
        # Kept outside of the module, whose attributes torch.export puts back.
        names[:] = metrics
        return loss, *metrics.values()

    with _modes_kept(step.model):
        if not training:
            step.model.eval()
        # By the name of the user's class, which errors tell.
        name = type(step.model).__name__
        call = type(name, (_Call,), {})(step.model, results)
        program = capture_program(call, (micro,), name=name, prefix="model.")
    metrics = _metrics(program, names)
    example = [leaf for leaf in pytree.tree_leaves(micro) if isinstance(leaf, torch.Tensor)]
    return CapturedStep(program if training else _forward_only(program), metrics, example, _constants(micro))


@contextmanager
def _modes_kept(model: nn.Module) -> Any:
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _forward_only(program: Program) -> Program:
    """The program without a backward pass."""
    nothing = np.zeros(program.graph.num_ops)
    graph = replace(program.graph, requires_grad=nothing.astype(bool), backward_flops=nothing, saved_bytes=nothing)
    return replace(program, graph=graph)


def _metrics(program: Program, names: list[str]) -> dict[str, int]:
    position = {node: op for op, node in enumerate(program.nodes)}
    outputs = pytree.tree_leaves(program.nodes[0].graph.output_node().args[0])
    metrics: dict[str, int] = {}
    for name, node in zip(names, outputs[1:], strict=True):
        if node not in position:
            raise SegueError(f"metric {name}: it must be computed from the batch by the model or the loss function")
        metrics[name] = position[node]
    return metrics


def batch_size(batch: Any) -> int:
    """Samples of a batch: the longest first dimension of its tensors.

    Raises:
        SegueError: if there is none.
    """
    sizes = [leaf.shape[0] for leaf in pytree.tree_leaves(batch) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    if not max(sizes, default=0):
        raise SegueError("batch: it has no tensor with a batch dimension, or is empty")
    return max(sizes)


def cut(batch: Any, size: int) -> Parts:
    """A batch's microbatches of `size` samples, the last one smaller if it does not come out even.

    What has not the batch's size as its first dimension goes to each of them whole.
    """
    total = batch_size(batch)
    count = len(part_sizes(total, size))
    leaves, spec = pytree.tree_flatten(batch)
    cut_leaves = [
        leaf.split(size) if isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == total else [leaf] * count
        for leaf in leaves
    ]
    return Parts([list(part) for part in zip(*cut_leaves, strict=True)], spec)
