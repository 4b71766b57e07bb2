"""`Program`: a captured model in executable form, op by op, beside its `Graph`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils import _pytree as pytree

from .errors import SegueError
from .graph import Graph


@dataclass(frozen=True, eq=False)
class BatchInput:
    """One tensor of the batch: its fx placeholder, the example's shape, and its symbolic sizes by dimension."""

    placeholder: str
    example_shape: tuple[int, ...]
    symbolic: dict[int, sympy.Expr]


@dataclass(frozen=True, eq=False)
class Program:
    """What `capture` read from the model.

    Attributes:
        graph: the costs; op `i` of the graph is `nodes[i]`.
        nodes: the aten call of each op, in topological order.
        parameters: fx placeholder name -> name of the parameter in the model; tied names share one.
        buffers: fx placeholder name -> name of the buffer in the model.
        constants: fx placeholder name -> tensor that the model closes over.
        inputs: the batch's tensors, in pytree order.
        output: index of the op whose value is the loss (or the first output).
        trainable: names of the parameters that require a gradient.
        in_spec: pytree structure of the batch.
        integers: fx name of a computed size -> its expression over the inputs' symbols.
    """

    graph: Graph
    nodes: tuple[fx.Node, ...]
    parameters: dict[str, str]
    buffers: dict[str, str]
    constants: dict[str, torch.Tensor]
    inputs: tuple[BatchInput, ...]
    output: int
    trainable: frozenset[str]
    in_spec: pytree.TreeSpec
    integers: dict[str, Any]

    def flatten(self, batch: Any) -> list[torch.Tensor]:
        """The batch's tensors in the order of `inputs`.

        Raises:
            SegueError: if the batch is not structured or shaped like the example batch.
        """
        leaves, spec = pytree.tree_flatten(batch)
        if spec != self.in_spec:
            raise SegueError(f"batch: structured as {spec}, but the model was captured with {self.in_spec}")
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if len(tensors) != len(self.inputs):
            raise SegueError(f"batch: {len(tensors)} tensors, but the model was captured with {len(self.inputs)}")
        sizes: dict[Any, int] = {}
        for position, (tensor, expected) in enumerate(zip(tensors, self.inputs, strict=True)):
            shape = expected.example_shape
            if tensor.dim() != len(shape) or any(
                tensor.shape[d] != shape[d] for d in range(len(shape)) if d not in expected.symbolic
            ):
                raise SegueError(
                    f"batch: tensor {position} has shape {tuple(tensor.shape)}, captured with {shape}; "
                    f"dimensions that may vary: {sorted(expected.symbolic) or 'none'}"
                )
            for d, symbol in expected.symbolic.items():
                if sizes.setdefault(symbol, tensor.shape[d]) != tensor.shape[d]:
                    raise SegueError(
                        f"batch: tensor {position} has shape {tuple(tensor.shape)}, but dimension {d} must be "
                        f"{sizes[symbol]} as in the other tensors"
                    )
        return tensors

    def bindings(self, tensors: list[torch.Tensor]) -> dict[Any, int]:
        """The value of every size symbol for these input tensors."""
        return {
            symbol: tensor.shape[dimension]
            for tensor, spec in zip(tensors, self.inputs, strict=True)
            for dimension, symbol in spec.symbolic.items()
            if symbol.is_Symbol
        }

    def sizes(self, bindings: dict[Any, int]) -> dict[str, Any]:
        """The value of every computed size."""
        return {name: _evaluate(expression, bindings) for name, expression in self.integers.items()}

    def shape(self, op: int, bindings: dict[Any, int]) -> tuple[int, ...]:
        """The shape of an op's result."""
        sizes = self.nodes[op].meta["val"].shape
        return tuple(int(_evaluate(_expression(size), bindings)) for size in sizes)

    def dtype(self, op: int) -> torch.dtype:
        """The type of an op's result."""
        return self.nodes[op].meta["val"].dtype

    def is_tensor(self, op: int) -> bool:
        """Whether an op's result is one tensor, not a tuple of them."""
        return isinstance(self.nodes[op].meta["val"], torch.Tensor)


def _expression(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else size


def _evaluate(expression: Any, bindings: dict[Any, int]) -> Any:
    if not isinstance(expression, sympy.Basic):
        return expression
    value: Any = expression.subs(bindings)
    return bool(value) if value.is_Boolean else int(value) if value.is_Integer else float(value)


def node_inputs(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes among a node's arguments, in order, repeated where they appear twice."""
    for leaf in pytree.tree_leaves((node.args, node.kwargs)):
        if isinstance(leaf, fx.Node):
            yield leaf
