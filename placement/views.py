"""Views of an exported graph: what shares memory with what, and in-place ops on views made functional."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from .errors import SegueError
from .exported import Placeholders, is_view, op_kind
from .program import node_inputs

_SCATTERS = {"select": "select_scatter", "slice": "slice_scatter", "diagonal": "diagonal_scatter"}
_SAME_ORDER = (
    "view",
    "_unsafe_view",
    "view_as",
    "reshape",
    "reshape_as",
    "flatten",
    "unflatten",
    "squeeze",
    "unsqueeze",
    "alias",
    "contiguous",
    "to",
)
_OWN_INVERSE = ("transpose", "t")


def viewed(node: fx.Node) -> fx.Node | None:
    """What a node's value is a view of; nothing where it has memory of its own."""
    if node.op != "call_function" or not is_view(node):
        return None
    source = next(node_inputs(node), None)
    if source is None or not _storages(node) & _storages(source):
        return None
    # An item of a result that is no view itself (topk) is a value of its own.
    return None if node.target is operator.getitem and viewed(source) is None else source


def _storages(node: fx.Node) -> set[int]:
    leaves = pytree.tree_leaves(node.meta.get("val"))
    return {leaf.untyped_storage()._cdata for leaf in leaves if isinstance(leaf, torch.Tensor)}


def call_value(target: Any, args: Any, kwargs: Any) -> Any:
    """What a call gives for the fake values of its arguments."""
    args, kwargs = fx.map_arg((args, kwargs), lambda source: source.meta["val"])
    with torch.no_grad():
        return target(*args, **kwargs)


def replace_viewed(node: fx.Node, base: fx.Node, functional: Callable[[], fx.Node], placeholders: Placeholders) -> None:
    """Make an in-place op on a view, or on a viewed value, functional: later readers of any alias read the new value.

    Args:
        node: the in-place op.
        base: the view or value that it changes.
        functional: makes the op itself functional and returns its value.
        placeholders: the model's tensors by placeholder.

    Raises:
        SegueError: for a view whose change cannot be written into what it views, or of a parameter or buffer.
    """
    chain = _chain(node, base, placeholders)
    order = {other: position for position, other in enumerate(node.graph.nodes)}
    later = {other for other in node.graph.nodes if order[other] > order[node]}
    value = functional()
    last = value
    new: dict[fx.Node, fx.Node] = {base: value}
    for view, source in chain:
        last = _insert(last, source, *_put_back(view, source, new[view]))
        new[source] = last
    root = chain[-1][1] if chain else base
    stale = [root]
    while stale:
        alias = stale.pop(0)
        if alias not in new and any(user in later or viewed(user) is alias for user in alias.users):
            source: Any = viewed(alias)
            args, kwargs = fx.map_arg((alias.args, alias.kwargs), lambda arg, s=source: new[s] if arg is s else arg)
            last = new[alias] = _insert(last, alias, alias.target, args, kwargs)
        if alias in new:
            stale += [user for user in alias.users if user not in later and viewed(user) is alias]
    for alias, current in new.items():
        for user in list(alias.users):
            if user in later:
                user.replace_input_with(alias, current)


def _chain(node: fx.Node, base: fx.Node, placeholders: Placeholders) -> list[tuple[fx.Node, fx.Node]]:
    """Each view and what it views, from `base` up to the value that owns the memory."""
    chain = []
    while (source := viewed(base)) is not None:
        kind = op_kind(base)
        if kind == "detach":
            raise SegueError(
                f"model: {node.name}: the in-place op {op_kind(node)} on a detached view cannot be captured (nor, in "
                "torch.no_grad(), on a value from outside that needs a gradient)"
            )
        if kind not in (*_SCATTERS, *_SAME_ORDER, *_OWN_INVERSE, "permute"):
            raise SegueError(
                f"model: {node.name}: the in-place op {op_kind(node)} on a view by {kind} cannot be captured"
            )
        chain.append((base, source))
        base = source
    if base.op == "placeholder" and base not in placeholders.inputs:
        name = placeholders.name(base.name) or base.name
        raise SegueError(
            f"model: {node.name}: the in-place op {op_kind(node)} on a view of {name} cannot be captured; change the whole "
            "tensor in one op"
        )
    return chain


def _put_back(view: fx.Node, source: fx.Node, value: fx.Node) -> tuple[Any, Any, Any]:
    """The call that gives `source` with `value` in the place of `view`."""
    aten, kind = torch.ops.aten, op_kind(view)
    if kind in _SCATTERS:
        return getattr(aten, _SCATTERS[kind]).default, (source, value, *view.args[1:]), dict(view.kwargs)
    if kind in _OWN_INVERSE:
        return view.target, (value, *view.args[1:]), dict(view.kwargs)
    if kind == "permute":
        given: Any = view.args[1]
        dims = [dim % len(given) for dim in given]
        return view.target, (value, [dims.index(dim) for dim in range(len(dims))]), {}
    return aten.reshape_as.default, (value, source), {}


def _insert(after: fx.Node, alias: fx.Node, target: Any, args: Any, kwargs: Any) -> fx.Node:
    """A call that stands for `alias` from here on; its fake value shares the memory that the other aliases' share."""
    with after.graph.inserting_after(after):
        node = after.graph.call_function(target, args, kwargs)
    node.meta = {**after.meta, "val": alias.meta["val"]}
    return node
