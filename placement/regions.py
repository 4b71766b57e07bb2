"""`torch.no_grad()` and `torch.autocast` regions of an exported graph, written out as plain ops."""

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._higher_order_ops.wrap import wrap_with_autocast, wrap_with_set_grad_enabled
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from .errors import SegueError
from .exported import Placeholders, op_kind
from .program import node_inputs


@dataclass(frozen=True)
class _Modes:
    """What a region sets: whether gradients are recorded, and the autocast type by device type."""

    grad: bool
    autocast: dict[str, torch.dtype]


def inline_regions(graph: fx.Graph, owner: torch.nn.Module, placeholders: Placeholders) -> None:
    """Replace every region by its ops, in place, such that they compute and differentiate the same without it.

    What a region without gradient reads is detached first. In an autocast region the casts become ops of their own.

    Args:
        graph: the exported graph.
        owner: the module that holds the regions' bodies.
        placeholders: the model's tensors by placeholder.

    Raises:
        SegueError: for a region that is none of these (control flow), or whose casts cannot be written out.
    """
    _refuse_neighbours(graph)
    without_grad: dict[fx.Node, int] = {}
    for number, region in enumerate([node for node in graph.nodes if _is_region(node)]):
        inlined: dict[fx.Node, _Modes] = {}
        with graph.inserting_before(region):
            outputs = _inline(graph, owner, region, _Modes(True, {}), inlined)
        kept: dict[Any, fx.Node] = {}
        for node, modes in list(inlined.items()):
            inlined |= dict.fromkeys(_write_casts(graph, node, modes, placeholders, kept), modes)
        without_grad |= {node: number for node, modes in inlined.items() if not modes.grad}
        _replace(region, outputs)
    _detach_inputs(graph, without_grad, placeholders)


def _is_region(node: fx.Node) -> bool:
    return node.target in (wrap_with_autocast, wrap_with_set_grad_enabled)


def _inline(
    graph: fx.Graph,
    owner: torch.nn.Module,
    region: fx.Node,
    modes: _Modes,
    inlined: dict[fx.Node, _Modes],
    env: Any = None,
) -> Any:
    """Copy a region's ops into `graph`; returns what its outputs are there.

    Args:
        graph: where to, at its insertion point.
        owner: the module that holds the region's body.
        region: the call of the region.
        modes: what the regions around it set.
        inlined: receives each copied op with the modes it runs in.
        env: the region's arguments in `graph`, where its call is in another graph.
    """
    arguments: Any = [env[arg] if env is not None and isinstance(arg, fx.Node) else arg for arg in region.args]
    if region.target is wrap_with_set_grad_enabled:
        enabled, body, *operands = arguments
        modes = _Modes(bool(enabled), modes.autocast)
    else:
        device_type, dtype, enabled, _, body, *operands = arguments
        autocast = {kind: given for kind, given in modes.autocast.items() if kind != device_type}
        if enabled:
            autocast[str(device_type)] = dtype if dtype is not None else torch.get_autocast_dtype(str(device_type))
        modes = _Modes(modes.grad, autocast)
    module = owner.get_submodule(str(body.target) if isinstance(body, fx.Node) else body)
    inner: Any = module.graph
    _refuse_neighbours(inner)
    values: dict[fx.Node, Any] = {}
    rest = iter(operands)
    for node in inner.nodes:
        if node.op == "placeholder":
            values[node] = next(rest)
        elif node.op == "output":
            return fx.map_arg(node.args[0], lambda source: values[source])
        elif node.op == "get_attr":
            values[node] = node.target
        elif _is_region(node):
            values[node] = _inline(graph, module, node, modes, inlined, values)
        elif node.target is operator.getitem and not isinstance(values[node.args[0]], fx.Node):
            values[node] = values[node.args[0]][node.args[1]]
        else:
            if isinstance(node.target, torch._ops.HigherOrderOperator):
                raise refused_region(node)
            values[node] = graph.node_copy(node, lambda source: values[source])
            inlined[values[node]] = modes
    raise AssertionError(f"{region.name}: a graph without an output")


def _refuse_neighbours(graph: fx.Graph) -> None:
    """Raise `SegueError` for two equal autocast regions with nothing between them.

    `torch.export` cuts an autocast region at every `torch.no_grad()` within and forgets the latter (seen in torch 2.13).
    """
    before: Any = None
    for node in graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        settings = node.args[:4] if node.target is wrap_with_autocast else None
        if settings is not None and settings == before:
            raise SegueError(
                f"model: {node.name}: torch.no_grad() inside torch.autocast (or two such regions in a row, which "
                "torch.export does not tell apart) cannot be captured; put torch.no_grad() outside"
            )
        before = settings


def refused_region(node: fx.Node) -> SegueError:
    """The error for a region that has no form as single ops."""
    return SegueError(
        f"model: {node.name}: a {node.target} region (control flow in the forward pass) cannot be captured; "
        "move it out of forward"
    )


def _replace(region: fx.Node, outputs: Any) -> None:
    """Let the readers of a region's results read the inlined ops."""
    for user in list(region.users):
        if user.target is operator.getitem:
            user.replace_all_uses_with(outputs[user.args[1]])
            user.graph.erase_node(user)
    if region.users:
        region.replace_all_uses_with(outputs)
    region.graph.erase_node(region)


def _detach_inputs(graph: fx.Graph, without_grad: dict[fx.Node, int], placeholders: Placeholders) -> None:
    """Cut the gradient where a value enters a region without gradient, once a value and region."""
    differentiable = {
        node
        for node in graph.nodes
        if node.op == "placeholder" and placeholders.parameters.get(node.name) in placeholders.trainable
    }
    detached: dict[tuple[fx.Node, int], fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        entering = [source for source in dict.fromkeys(node_inputs(node)) if source in differentiable]
        # An item of a tuple that was computed outside is the tuple's, wherever it is taken out.
        if node not in without_grad or node.target is operator.getitem:
            if entering and _floating(node):
                differentiable.add(node)
            continue
        for source in entering:
            key = (source, without_grad[node])
            if key not in detached:
                with graph.inserting_before(node):
                    detached[key] = graph.call_function(torch.ops.aten.detach.default, (source,))
                detached[key].meta = {**node.meta, "val": source.meta["val"].detach()}
            node.replace_input_with(source, detached[key])


def _floating(node: fx.Node) -> bool:
    return any(
        isinstance(leaf, torch.Tensor) and (leaf.is_floating_point() or leaf.is_complex())
        for leaf in pytree.tree_leaves(node.meta.get("val"))
    )


class _Casts(TorchDispatchMode):
    """Notes the casts that an op begins with."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[torch.Tensor, torch.dtype]] = []
        self.open = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.open = self.open and func in (torch.ops.aten._to_copy.default, torch.ops.prim.device.default)
        if self.open and "dtype" in kwargs:
            self.found.append((args[0], kwargs["dtype"]))
        return func(*args, **kwargs)


def _write_casts(
    graph: fx.Graph, node: fx.Node, modes: _Modes, placeholders: Placeholders, kept: dict[Any, fx.Node]
) -> list[fx.Node]:
    """Give an op of an autocast region the operands that autocast would cast for it; returns the casts.

    Which they are is seen by running the op once under autocast on fake tensors. As autocast does, a parameter is cast
    once in a region (`kept`), so that its gradients are summed in the lower precision.
    """
    casts: list[fx.Node] = []
    if not isinstance(node.target, torch._ops.OpOverload):
        return casts
    for device_type, dtype in modes.autocast.items():
        name = f"Autocast{device_type.upper()}"
        if not torch._C._dispatch_has_kernel_for_dispatch_key(node.target.name(), name) or not _on(device_type, node):
            continue
        target = _autocast_casts(node, device_type, dtype)
        with graph.inserting_before(node):
            for source in dict.fromkeys(node_inputs(node)):
                value = source.meta["val"]
                if id(value) not in target:
                    continue
                key = (source, target[id(value)], modes.grad)
                cast = kept.get(key)
                if cast is None:
                    cast = graph.call_function(torch.ops.aten.to.dtype, key[:2])
                    cast.meta = {**node.meta, "val": value.to(key[1])}
                    casts.append(cast)
                if source.name in placeholders.parameters:
                    kept[key] = cast
                node.replace_input_with(source, cast)
        _check_casts(node)
    return casts


def _autocast_casts(node: fx.Node, device_type: str, dtype: torch.dtype) -> dict[int, torch.dtype]:
    """What autocast casts an op's operands to, by the identity of their fake values."""
    with torch.autocast(device_type, dtype, cache_enabled=False):
        found = _casts(node)
    # An op may begin with casts of its own, which it makes everywhere.
    return {} if found == _casts(node) else found


def _casts(node: fx.Node) -> dict[int, torch.dtype]:
    """The casts that an op begins with; none if it does not take its operands as they are."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
    operands = {id(leaf) for leaf in pytree.tree_leaves((args, kwargs))}
    try:
        with torch.no_grad(), _Casts() as seen:
            node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]
    except RuntimeError:
        return {}
    return {id(tensor): to for tensor, to in seen.found if id(tensor) in operands}


def _on(device_type: str, node: fx.Node) -> bool:
    return any(
        isinstance(leaf, torch.Tensor) and leaf.device.type == device_type
        for source in node_inputs(node)
        for leaf in pytree.tree_leaves(source.meta.get("val"))
    )


def _check_casts(node: fx.Node) -> None:
    """Raise `SegueError` unless the op, now outside autocast, gives what it gave inside."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
    try:
        with torch.no_grad():
            output: Any = node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]
    except RuntimeError:
        output = None
    expected = [leaf.dtype for leaf in pytree.tree_leaves(node.meta["val"]) if isinstance(leaf, torch.Tensor)]
    if [leaf.dtype for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)] != expected:
        raise SegueError(
            f"model: {node.name}: what torch.autocast does to {op_kind(node)} cannot be captured; "
            "move it out of the autocast region or cast by hand"
        )
