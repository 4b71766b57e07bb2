"""From an `nn.Module` and an example batch to a `Graph`, through `torch.export`."""

import contextlib
import inspect
import io
import operator
import warnings
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from .errors import SegueError
from .exported import Placeholders, computed_sizes, devices_by_name, expression, is_size, op_kind, op_module, symbols
from .fake_run import FakeRun
from .graph import Graph, make_graph
from .inplace import (
    changed_placeholder,
    delay_buffer_updates,
    earlier_readers,
    make_functional,
    refuse_repeated_updates,
    updated,
)
from .program import BatchInput, Program, node_inputs
from .regions import inline_regions, refused_region
from .tied import read_once


def capture(model: nn.Module, example_inputs: tuple[Any, ...], name: str = "") -> Graph:
    """The computation graph of `model(*example_inputs)`, in the mode (train or eval) that the model is in.

    Args:
        model: any module that `torch.export` can trace.
        example_inputs: positional arguments; the first dimension of every tensor is the batch.
        name: the graph's name; by default the module's class.

    Raises:
        SegueError: if the model cannot be traced (the message carries torch's reason), or has no form as single ops that
            mean the same on any device and for any number of microbatches.
    """
    return capture_program(model, example_inputs, name=name).graph


def capture_program(model: nn.Module, example_inputs: tuple[Any, ...], *, name: str = "", prefix: str = "") -> Program:
    """As `capture`, with the executable form of every op.

    Args:
        model: any module that `torch.export` can trace.
        example_inputs: positional arguments; `Program.flatten` takes the first where there is only one, else the tuple.
        name: the graph's name; by default the module's class.
        prefix: dropped from the front of parameter names and module paths (`model.` for a `TrainingStep`).

    Raises:
        SegueError: as in `capture`.
    """
    exported = _export(model, example_inputs)
    placeholders = Placeholders(model, exported, prefix)
    inline_regions(exported.graph, exported.graph_module, placeholders)
    devices_by_name(exported.graph)
    make_functional(exported.graph, placeholders)
    read_once(exported.graph, placeholders)
    nodes = _ops(exported.graph)
    refuse_repeated_updates(nodes, placeholders)
    after = delay_buffer_updates(nodes, prefix)
    output = _output(exported.graph, nodes)
    _check_ops(exported.graph, nodes, placeholders)
    batch = example_inputs[0] if len(example_inputs) == 1 else example_inputs
    leaves, in_spec = pytree.tree_flatten(batch)
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    inputs = tuple(_batch_input(node, tensor) for node, tensor in zip(placeholders.inputs, tensors, strict=True))
    examples = {node.name: tensor for node, tensor in zip(placeholders.inputs, tensors, strict=True)}
    costs = FakeRun(placeholders, examples).run(nodes)
    _stop_gradients(nodes, output, costs)
    return Program(
        graph=_graph(name or type(model).__name__, nodes, after, placeholders, costs, _batch_size(tensors), prefix),
        nodes=tuple(nodes),
        parameters=placeholders.parameters,
        buffers=placeholders.buffers,
        constants=placeholders.constants,
        inputs=inputs,
        output=output,
        trainable=placeholders.trainable,
        in_spec=in_spec,
        integers={node.name: expression(node.meta["val"]) for node in computed_sizes(nodes)},
    )


def _export(model: nn.Module, example_inputs: tuple[Any, ...]) -> Any:
    """Export with a dynamic batch dimension if the model allows one, else with the example's sizes."""
    # Where it fails, torch.export writes the whole graph so far to stderr.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            # By name, because the arguments of a forward(self, *inputs) are one entry to torch.export.
            arguments = inspect.signature(model.forward).bind(*example_inputs).arguments
            dynamic = pytree.tree_map(_batch_dimension, dict(arguments))
            return torch.export.export(model, example_inputs, dynamic_shapes=dynamic, strict=False)
        except Exception:
            try:
                return torch.export.export(model, example_inputs, strict=False)
            except Exception as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
                raise SegueError(f"model {type(model).__name__}: torch.export cannot trace it: {reason}") from error


def _batch_dimension(leaf: Any) -> dict[int, Any] | None:
    batched = isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] > 1
    return {0: torch.export.Dim.AUTO} if batched else None


def _batch_input(node: fx.Node, example: torch.Tensor) -> BatchInput:
    sizes = node.meta["val"].shape
    symbolic = {d: expression(size) for d, size in enumerate(sizes) if isinstance(size, torch.SymInt)}
    return BatchInput(node.name, tuple(example.shape), symbolic)


def _batch_size(tensors: list[torch.Tensor]) -> int:
    return max((tensor.shape[0] for tensor in tensors if tensor.dim()), default=1)


def _ops(graph: fx.Graph) -> list[fx.Node]:
    """The calls that compute tensors and whose result, or whose effect on a buffer, somebody needs."""
    needed: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node in needed or any(source.op == "placeholder" for source in updated(node)):
            needed.add(node)
            needed.update(node_inputs(node))
    return [node for node in graph.nodes if node.op == "call_function" and node in needed and not is_size(node)]


def _output(graph: fx.Graph, nodes: list[fx.Node]) -> int:
    """The op whose value is the loss, or the first output."""
    value = next(node_inputs(next(node for node in reversed(graph.nodes) if node.op == "output")), None)
    if value not in nodes:
        raise SegueError("model: the first output must be a tensor that the model computes")
    return nodes.index(value)


def _stop_gradients(nodes: list[fx.Node], output: int, costs: dict[str, list[float]]) -> None:
    """No gradient comes back to what the output does not read, such as a norm run for its statistics alone."""
    reached = {nodes[output]}
    for op in range(len(nodes) - 1, -1, -1):
        if nodes[op] in reached:
            reached.update(node_inputs(nodes[op]))
        else:
            costs["requires_grad"][op] = costs["backward_flops"][op] = 0.0


def _check_ops(graph: fx.Graph, nodes: list[fx.Node], placeholders: Placeholders) -> None:
    """Raise `SegueError` for what has no form as single ops whose sizes follow from the batch's."""
    known = {symbol for node in placeholders.inputs for size in symbols(node) for symbol in size.free_symbols}
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise refused_region(node)
    for node in (*nodes, *computed_sizes(nodes)):
        if any(not size.free_symbols <= known for size in symbols(node)):
            raise SegueError(
                f"model: {node.name}: the size or number that {op_kind(node)} computes depends on the batch's values; "
                "only sizes that follow from the batch's shapes can be captured"
            )


def _graph(
    name: str,
    nodes: list[fx.Node],
    after: dict[fx.Node, fx.Node],
    placeholders: Placeholders,
    costs: dict[str, list[float]],
    batch_size: int,
    prefix: str,
) -> Graph:
    position = {node: op for op, node in enumerate(nodes)}
    edges = [
        (position[source], op)
        for node, op in position.items()
        for source in (*node_inputs(node), *([after[node]] if node in after else []), *earlier_readers(node, position))
        if source in position
    ]
    modules = [op_module(node, prefix) for node in nodes]
    parameter_bytes, buffer_bytes = np.zeros(len(nodes)), np.zeros(len(nodes))
    counted: set[str] = set()
    for op, node in enumerate(nodes):
        for source in node_inputs(node):
            tensor_name = placeholders.name(source.name)
            if tensor_name is None or tensor_name in counted:
                continue
            counted.add(tensor_name)
            column = parameter_bytes if tensor_name in placeholders.trainable else buffer_bytes
            column[op] += placeholders.tensors[source.name].nbytes
    requires_grad = np.array(costs.pop("requires_grad"), bool)
    return make_graph(
        name,
        edges,
        len(nodes),
        batch_size=batch_size,
        names=[node.name for node in nodes],
        kinds=[op_kind(node) for node in nodes],
        modules=modules,
        requires_grad=requires_grad,
        colocation=_colocation(nodes, position, after, placeholders),
        parameter_bytes=parameter_bytes,
        buffer_bytes=buffer_bytes,
        **{column: np.array(values) for column, values in costs.items()},
    )


def _colocation(
    nodes: list[fx.Node], position: dict[fx.Node, int], after: dict[fx.Node, fx.Node], placeholders: Placeholders
) -> np.ndarray:
    """Ops that must share a device: users of one parameter or buffer, parts of one result, a module's buffer updates."""
    group = list(range(len(nodes)))

    def find(op: int) -> int:
        while group[op] != op:
            op = group[op]
        return op

    first_user: dict[str, int] = {}
    for op, node in enumerate(nodes):
        together = []
        if node.target is operator.getitem:
            together.append(position[node.args[0]])  # pyright: ignore[reportArgumentType]
        for source in node_inputs(node):
            tensor_name = placeholders.name((changed_placeholder(source) or source).name)
            if tensor_name is not None:
                together.append(first_user.setdefault(tensor_name, op))
        if node in after:
            together.append(position[after[node]])
        for other in together:
            a, b = sorted((find(op), find(other)))
            group[b] = a
    roots = np.array([find(op) for op in range(len(nodes))])
    values, inverse, counts = np.unique(roots, return_inverse=True, return_counts=True)
    labels = np.full(len(values), -1)
    labels[counts > 1] = np.arange((counts > 1).sum())
    return labels[inverse]
