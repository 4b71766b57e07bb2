"""In-place ops of an exported graph: made functional on computed values, kept in order on buffers."""

import torch
from torch import fx

from .errors import SegueError
from .exported import Placeholders, is_view, op_kind, op_module
from .program import node_inputs


def make_functional(graph: fx.Graph, placeholders: Placeholders) -> None:
    """Replace in-place ops on computed values and on the batch (`relu_`) by their functional forms (`relu`).

    The values are the same; but a value that other ops read cannot be overwritten once it may be needed on another
    device. In-place updates of buffers stay.

    Raises:
        SegueError: for an in-place op on a view or a viewed value, or without a functional form.
    """
    order = {node: position for position, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.op != "call_function" or not mutates(node):
            continue
        changed = changed_placeholder(node)
        if changed is not None and changed not in placeholders.inputs:
            continue
        if node.target._schema.name.rsplit("::")[-1] in _UPDATES_BUFFERS:
            continue
        base = node.args[0]
        name = node.target._schema.name.rsplit("::")[-1]
        functional = getattr(getattr(torch.ops.aten, name.removesuffix("_"), None), node.target._overloadname, None)
        if not name.endswith("_") or functional is None or not isinstance(base, fx.Node) or is_view(base):
            raise SegueError(f"model: {node.name}: the in-place op {name} on a view cannot be captured")
        if any(order[user] > order[node] for view in _views(base) if order[view] < order[node] for user in view.users):
            raise SegueError(
                f"model: {node.name}: the in-place op {name} on a value that is also read through a view cannot be captured"
            )
        for user in list(base.users):
            if order[user] > order[node]:
                user.replace_input_with(base, node)
        node.target = functional


def _views(node: fx.Node) -> list[fx.Node]:
    """Views of a node's value, and views of those."""
    views = [user for user in node.users if user.op == "call_function" and is_view(user)]
    return views + [deeper for view in views for deeper in _views(view)]


_UPDATES_BUFFERS = {"batch_norm", "instance_norm", "native_batch_norm", "_native_batch_norm_legit"}


def mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def changed_placeholder(node: fx.Node) -> fx.Node | None:
    """The placeholder that an in-place op changes, at once or through other in-place ops."""
    base = node
    while base.op == "call_function" and mutates(base):
        first = next(node_inputs(base), None)
        if first is None:
            return None
        base = first
    return base if base is not node and base.op == "placeholder" else None


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
    while base.op == "call_function" and mutates(base):
        base = next(node_inputs(base))
        readers.extend(user for user in base.users if position.get(user, len(position)) < position[node])
    return readers


