"""`FakeRun`: what every op computes, moves and keeps for backward, read from a forward pass on fake tensors."""

import operator
from collections import defaultdict
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from .errors import SegueError
from .exported import Placeholders, is_view, op_kind
from .flops import backward_flops, forward_flops

_COLUMNS = ("forward_flops", "backward_flops", "read_bytes", "written_bytes", "saved_bytes")


class FakeRun:
    """One forward pass over fake tensors that counts, op by op, what is computed, moved and kept for backward.

    Args:
        placeholders: the model's tensors by placeholder.
        inputs: the example batch's tensors by placeholder.
    """

    def __init__(self, placeholders: Placeholders, inputs: dict[str, torch.Tensor]):
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.values: dict[str, Any] = {}
        self.state_storages: set[int] = set()
        for name, tensor in placeholders.tensors.items():
            fake = self._fake(tensor)
            fake.requires_grad_(placeholders.parameters.get(name) in placeholders.trainable)
            self.values[name] = fake
            self.state_storages.add(_storage(fake))
        self.values |= {name: self._fake(tensor) for name, tensor in inputs.items()}
        self.seen: set[int] = set()
        self.saved = 0.0

    def _fake(self, tensor: torch.Tensor) -> torch.Tensor:
        with self.mode:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = _storage(tensor)
        if storage not in self.seen and storage not in self.state_storages:
            self.seen.add(storage)
            self.saved += tensor.untyped_storage().nbytes()
        return tensor

    def run(self, nodes: list[fx.Node]) -> dict[str, list[float]]:
        """The costs of every op, at the example batch's size.

        Args:
            nodes: the ops, in topological order.

        Returns:
            Columns of a `Graph` by name (FLOPs, bytes, `requires_grad`), an entry an op.
        """
        columns: dict[str, list[float]] = defaultdict(list)
        keep_alive = []
        hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)
        with self.mode, torch.enable_grad(), hooks:
            for node in nodes:
                self.saved = 0.0
                args, kwargs = fx.map_arg((node.args, node.kwargs), self._value)
                output = _call(node, args, kwargs)
                self.values[node.name] = output
                keep_alive.append(output)
                for column, value in self._row(node, args, kwargs, output).items():
                    columns[column].append(value)
        return columns

    def _value(self, node: fx.Node) -> Any:
        if node.name not in self.values:
            self.values[node.name] = _hint(node.meta["val"])
        return self.values[node.name]

    def _row(self, node: fx.Node, args: Any, kwargs: Any, output: Any) -> dict[str, float]:
        if node.target is operator.getitem:
            return dict.fromkeys(_COLUMNS, 0.0) | {
                "output_bytes": _nbytes(output),
                "requires_grad": _needs_grad(output),
            }
        kind = op_kind(node)
        operands = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        forward = forward_flops(kind, args, output)
        needs_grad = _needs_grad(output)
        differentiated = sum(leaf.requires_grad for leaf in operands[:2]) if needs_grad else 0
        view = is_view(node)
        return {
            "forward_flops": 0.0 if view else forward,
            "backward_flops": 0.0 if view else backward_flops(kind, forward, differentiated),
            "read_bytes": 0.0 if view else sum(map(_nbytes, operands)),
            "written_bytes": 0.0 if view else _nbytes(output),
            "saved_bytes": self.saved,
            "output_bytes": _nbytes(output),
            "requires_grad": needs_grad,
        }


def _call(node: fx.Node, args: Any, kwargs: Any) -> Any:
    try:
        output: Any = node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise SegueError(f"model: {node.name}: {op_kind(node)} cannot be captured: {reason}") from error
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, torch.Tensor) and type(leaf.grad_fn).__name__ == "NotImplemented":
            raise SegueError(f"model: {node.name}: {op_kind(node)} cannot be captured: it has no derivative")
    return output


def _hint(value: Any) -> Any:
    return value.node.hint if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool) else value


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _nbytes(value: Any) -> float:
    return float(sum(t.numel() * t.element_size() for t in pytree.tree_leaves(value) if isinstance(t, torch.Tensor)))


def _needs_grad(value: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in pytree.tree_leaves(value))
