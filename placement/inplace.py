"""In-place ops of an exported graph: made functional on computed values, kept in order on buffers."""

from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from .errors import SegueError
from .exported import Placeholders, op_kind, op_module
from .program import node_inputs
from .views import call_value, replace_viewed, viewed

_UPDATES_BUFFERS = {"batch_norm", "instance_norm", "native_batch_norm", "_native_batch_norm_legit"}
_STATISTICS = ("running_mean", "running_var")


def make_functional(graph: fx.Graph, placeholders: Placeholders) -> None:
    """Replace in-place ops on computed values and on the batch (`relu_`) by their functional forms (`relu`).

    The values are the same; but a value that other ops read cannot be overwritten once it may be needed on another
    device. In-place updates of buffers stay.

    Raises:
        SegueError: for an in-place op without a functional form, or on a view that cannot be put back into what it views.
    """
    order = {node: position for position, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.op != "call_function" or not _mutates(node):
            continue
        changed = changed_placeholder(node)
        if (changed is not None and changed not in placeholders.inputs) or op_kind(node) in _UPDATES_BUFFERS:
            continue
        base = node.args[0]
        if not isinstance(base, fx.Node):
            raise SegueError(f"model: {node.name}: the in-place op {op_kind(node)} cannot be captured")
        views = _views(base)
        if viewed(base) is None and not any(order[view] < order[node] < _last_read(view, order) for view in views):
            value = _functional(node, base)
            _read_instead(base, value, order[node], order)
        else:
            replace_viewed(node, base, lambda node=node, base=base: _functional(node, base), placeholders)
            order = {node: position for position, node in enumerate(graph.nodes)}


def _functional(node: fx.Node, base: fx.Node) -> fx.Node:
    """Make one in-place call functional; returns the node of the new value, in the type of the old."""
    name = op_kind(node)
    functional = getattr(getattr(torch.ops.aten, name.removesuffix("_"), None), node.target._overloadname, None)  # pyright: ignore
    arguments = node.args
    if name == "copy_":
        # The functional copy has no derivative.
        functional, arguments = torch.ops.aten.clone.default, (_expanded(node, base),)
    if not name.endswith("_") or functional is None:
        raise SegueError(f"model: {node.name}: the in-place op {name} cannot be captured: it has no functional form")
    node.target, node.args = functional, arguments
    dtype = base.meta["val"].dtype
    if call_value(functional, arguments, node.kwargs).dtype == dtype:
        return node
    with node.graph.inserting_after(node):
        cast = node.graph.call_function(torch.ops.aten.to.dtype, (node, dtype))
    cast.meta = dict(node.meta)
    node.meta = {**node.meta, "val": call_value(functional, arguments, node.kwargs)}
    node.replace_all_uses_with(cast, delete_user_cb=lambda user: user is not cast)
    return cast


def _expanded(node: fx.Node, base: fx.Node) -> Any:
    """What a `copy_` writes, in the shape of what it writes to."""
    source: Any = node.args[1]
    args = (source, base)
    value = call_value(torch.ops.aten.expand_as.default, args, {})
    if str(value.shape) == str(source.meta["val"].shape):
        return source
    with node.graph.inserting_before(node):
        expanded = node.graph.call_function(torch.ops.aten.expand_as.default, args)
    expanded.meta = {**node.meta, "val": value}
    return expanded


def _read_instead(old: fx.Node, new: fx.Node, position: int, order: dict[fx.Node, int]) -> None:
    for user in list(old.users):
        if order.get(user, -1) > position:
            user.replace_input_with(old, new)


def _last_read(node: fx.Node, order: dict[fx.Node, int]) -> int:
    return max((order.get(user, -1) for user in node.users), default=-1)


def _views(node: fx.Node) -> list[fx.Node]:
    """Views of a node's value, and views of those."""
    views = [user for user in node.users if viewed(user) is node]
    return views + [deeper for view in views for deeper in _views(view)]


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def changed_placeholder(node: fx.Node) -> fx.Node | None:
    """The placeholder that an in-place op changes, at once or through other in-place ops."""
    base = _origin(node)
    return base if base is not None and base is not node and base.op == "placeholder" else None


def _origin(node: fx.Node) -> fx.Node | None:
    """What a chain of in-place ops that ends at this node began with."""
    base: fx.Node | None = node
    while base is not None and base.op == "call_function" and _mutates(base):
        base = next(node_inputs(base), None)
    return base


def refuse_repeated_updates(nodes: list[fx.Node], placeholders: Placeholders) -> None:
    """Make sure that no buffer is updated by two ops of a step.

    Two updates in different stages would be made in another order than by the model's own forward passes, one microbatch
    after the other, and in a different order for every placement.

    Raises:
        SegueError: for the first buffer that is, as by one BatchNorm called on two branches in train mode.
    """
    updates: dict[str, list[str]] = {}
    for node in nodes:
        for name in dict.fromkeys(placeholders.name(source.name) for source in updated(node)):
            if name is not None:
                updates.setdefault(name, []).append(node.name)
    for name, ops in updates.items():
        if len(ops) > 1:
            module, _, buffer = name.rpartition(".")
            owner = f"module {module}: its buffer {buffer}" if module else f"buffer {buffer}"
            raise SegueError(
                f"model: {owner} is updated by {len(ops)} ops of one step ({ops[0]}, {ops[1]}{', ...' * (len(ops) > 2)}), "
                "whose order over devices and microbatches cannot be kept; give each branch its own module, freeze this "
                "one with eval(), or update the buffer in one op"
            )


def updated(node: fx.Node) -> list[fx.Node]:
    """What a call overwrites: the arguments that its schema says, and a norm's statistics, which its schema conceals."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    arguments = node.target._schema.arguments
    given = dict(zip((argument.name for argument in arguments), node.args, strict=False)) | node.kwargs
    training = given.get("training", given.get("use_input_stats", False))
    written = [
        given.get(argument.name)
        for argument in arguments
        if (argument.alias_info is not None and argument.alias_info.is_write)
        or (training and argument.name in _STATISTICS)
    ]
    origins = (_origin(leaf) for leaf in pytree.tree_leaves(written) if isinstance(leaf, fx.Node))
    return [origin for origin in origins if origin is not None]


def delay_buffer_updates(nodes: list[fx.Node], prefix: str) -> dict[fx.Node, fx.Node]:
    """Move updates that nobody reads (BatchNorm's batch counter) behind the next op of their module, in place.

    They have no edges, and would otherwise be stages of their own.

    Returns:
        Each such update and the op it now follows.
    """
    after: dict[fx.Node, fx.Node] = {}
    for node in [node for node in nodes if changed_placeholder(node) is not None and not node.users]:
        position = nodes.index(node)
        module = op_module(node, prefix)
        later = (n for n in nodes[position + 1 :] if changed_placeholder(n) is None)
        target = next((n for n in later if module and op_module(n, prefix) == module), None)
        if target is not None:
            nodes.remove(node)
            nodes.insert(nodes.index(target) + 1, node)
            after[node] = target
    return after


def earlier_readers(node: fx.Node, position: dict[fx.Node, int]) -> list[fx.Node]:
    """The ops that read a buffer before this op changes it."""
    readers: list[fx.Node] = []
    base = node
    while base.op == "call_function" and _mutates(base):
        base = next(node_inputs(base))
        readers.extend(user for user in base.users if position.get(user, len(position)) < position[node])
    return readers
