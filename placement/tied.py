"""Parameters that several ops read, such as tied weights: one op reads them for all, wherever those are."""

import torch
from torch import fx

from .exported import Placeholders
from .inplace import updated


def read_once(graph: fx.Graph, placeholders: Placeholders) -> None:
    """Give every parameter with several readers an op of its own that reads it, in place.

    The parameter and its optimizer state are where this op is. Its value goes to the readers, and their gradients come back,
    as between any ops.

    Args:
        graph: an exported graph.
        placeholders: the model's tensors by placeholder.
    """
    nodes: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "placeholder" and node.name in placeholders.parameters:
            nodes.setdefault(placeholders.parameters[node.name], []).append(node)
    order = {node: place for place, node in enumerate(graph.nodes)}
    for tied in nodes.values():
        readers = sorted({user for node in tied for user in node.users}, key=order.__getitem__)
        # One that an op changes in place has to be there itself.
        if len(readers) < 2 or any(node in updated(reader) for node in tied for reader in readers):
            continue
        first = min((node for node in tied if readers[0] in node.users), key=order.__getitem__)
        with graph.inserting_before(readers[0]):
            read = graph.create_node("call_function", torch.ops.aten.alias.default, (first,), name=f"read_{first.name}")
        read.meta = {**readers[0].meta, "val": first.meta["val"]}
        for node in tied:
            node.replace_all_uses_with(read, delete_user_cb=lambda user, read=read: user is not read)
