"""What the nodes of an exported graph are: its placeholders told apart, and each op's kind, module and sizes."""

import operator
from typing import Any

import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from .errors import SegueError
from .program import node_inputs


class Placeholders:
    """The placeholders of an exported graph, told apart; tied tensors share the first of their names.

    Args:
        model: the exported module.
        exported: its `torch.export.ExportedProgram`.
        prefix: dropped from the front of names.

    Attributes:
        parameters: placeholder -> name of the parameter in the model.
        buffers: placeholder -> name of the buffer in the model.
        constants: placeholder -> tensor that the model closes over.
        tensors: placeholder -> the tensor, for all of these.
        inputs: placeholders of the batch's tensors, in pytree order.
        trainable: names of the parameters that require a gradient.

    Raises:
        SegueError: for a placeholder that is none of these.
    """

    def __init__(self, model: nn.Module, exported: Any, prefix: str):
        named = dict(model.named_parameters(remove_duplicate=False))
        named |= dict(model.named_buffers(remove_duplicate=False))
        canonical: dict[int, str] = {}
        for tensor_name, tensor in named.items():
            canonical.setdefault(id(tensor), tensor_name.removeprefix(prefix))
        self.parameters: dict[str, str] = {}
        self.buffers: dict[str, str] = {}
        self.constants: dict[str, torch.Tensor] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        self.inputs: list[fx.Node] = []
        nodes = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
        for spec in exported.graph_signature.input_specs:
            placeholder, target = spec.arg.name, str(spec.target)
            if spec.kind == InputKind.USER_INPUT:
                if isinstance(nodes[placeholder].meta.get("val"), torch.Tensor):
                    self.inputs.append(nodes[placeholder])
                continue
            if spec.kind == InputKind.CONSTANT_TENSOR:
                self.constants[placeholder] = self.tensors[placeholder] = exported.constants[target]
                continue
            if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER):
                raise SegueError(f"model: an input of kind {spec.kind.name} cannot be captured")
            kept = self.parameters if spec.kind == InputKind.PARAMETER else self.buffers
            kept[placeholder] = canonical[id(named[target])]
            self.tensors[placeholder] = named[target]
        self.trainable = frozenset(canonical[id(p)] for p in model.parameters() if p.requires_grad)

    def name(self, placeholder: str) -> str | None:
        """The name in the model of the parameter or buffer behind a placeholder."""
        return self.parameters.get(placeholder) or self.buffers.get(placeholder)


def is_size(node: fx.Node) -> bool:
    """Whether a node computes a size or another number, not a tensor."""
    return node.op == "call_function" and isinstance(
        node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool | int | float | bool
    )


def computed_sizes(nodes: list[fx.Node]) -> dict[fx.Node, None]:
    """The computed sizes that ops take, in order."""
    return dict.fromkeys(source for node in nodes for source in node_inputs(node) if is_size(source))


def expression(value: Any) -> Any:
    """The sympy expression of a symbolic number; any other value as it is."""
    return value.node.expr if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool) else value


def symbols(node: fx.Node) -> list[Any]:
    """Symbolic sizes and numbers in a node's value."""
    values = []
    for leaf in pytree.tree_leaves(node.meta.get("val")):
        values.extend(map(expression, leaf.shape if isinstance(leaf, torch.Tensor) else [leaf]))
    return [value for value in values if hasattr(value, "free_symbols")]


def is_view(node: fx.Node) -> bool:
    """Whether a node's result shares memory with its input, or is a part of its input's result."""
    if node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)


def devices_by_name(graph: fx.Graph) -> None:
    """Let every call take its device as a keyword, where the executor finds it and puts its own."""
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        names = [argument.name for argument in schema.arguments] if schema is not None else []
        if "device" in names[: len(node.args)]:
            first = names.index("device")
            node.kwargs = dict(zip(names[first:], node.args[first:], strict=False)) | node.kwargs
            node.args = node.args[:first]


def op_kind(node: fx.Node) -> str:
    """The aten op's name without namespace and overload, `conv2d`."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.rsplit("::")[-1]
    return getattr(node.target, "__name__", str(node.target))


def op_module(node: fx.Node, prefix: str) -> str:
    """The path of the module whose forward makes this call, without `prefix`; empty for the model itself."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = stack[-1][0] if stack and isinstance(stack[-1][0], str) else ""
    return "" if path.startswith("_empty") else f"{path}.".removeprefix(prefix).removesuffix(".")
