"""From an `nn.Module` and an example batch to a `Graph`, through `torch.export`."""

import operator
import warnings
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from .errors import SegueError
from .flops import backward_flops, forward_flops
from .graph import Graph, make_graph
from .program import BatchInput, Program, node_inputs


def capture(model: nn.Module, example_inputs: tuple[Any, ...], name: str = "") -> Graph:
    """The computation graph of `model(*example_inputs)`, in the mode (train or eval) that the model is in.

    Args:
        model: any module that `torch.export` can trace.
        example_inputs: positional arguments; the first dimension of every tensor is the batch.
        name: the graph's name; by default the module's class.

    Raises:
        SegueError: if the model cannot be traced; the message carries torch's reason.
    """
    return capture_program(model, example_inputs, name=name).graph


def capture_program(model: nn.Module, example_inputs: tuple[Any, ...], *, name: str = "", prefix: str = "") -> Program:
    """As `capture`, with the executable form of every op.

    Args:
        model: any module that `torch.export` can trace.
        example_inputs: positional arguments; `Program.flatten` takes the first where there is only one, else the tuple.
        name: the graph's name; by default the module's class.
        prefix: dropped from the front of parameter names and module paths (`model.` for a `TrainingStep`).
    """
    exported = _export(model, example_inputs)
    state = _State(model, exported, prefix)
    _make_functional(exported.graph, state)
    nodes = _ops(exported.graph)
    after = _delay_buffer_updates(nodes, prefix)
    output = _output(exported.graph, nodes)
    _check_ops(exported.graph, nodes, state)
    batch = example_inputs[0] if len(example_inputs) == 1 else example_inputs
    leaves, in_spec = pytree.tree_flatten(batch)
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    inputs = tuple(_batch_input(node, tensor) for node, tensor in zip(state.inputs, tensors, strict=True))
    costs = _FakeRun(state, dict(zip((node.name for node in state.inputs), tensors, strict=True))).run(nodes)
    return Program(
        graph=_graph(name or type(model).__name__, nodes, after, state, costs, _batch_size(tensors), prefix),
        nodes=tuple(nodes),
        parameters=state.parameters,
        buffers=state.buffers,
        constants=state.constants,
        inputs=inputs,
        output=output,
        trainable=state.trainable,
        in_spec=in_spec,
        integers={node.name: _expression(node.meta["val"]) for node in _integers(nodes)},
    )


def _export(model: nn.Module, example_inputs: tuple[Any, ...]) -> Any:
    """Export with a dynamic batch dimension if the model allows one, else with the example's sizes."""
    dynamic = pytree.tree_map(
        lambda leaf: (
            {0: torch.export.Dim.AUTO} if isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] > 1 else None
        ),
        example_inputs,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.export.export(model, example_inputs, dynamic_shapes=dynamic, strict=False)
        except Exception:
            try:
                return torch.export.export(model, example_inputs, strict=False)
            except Exception as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
                raise SegueError(f"model {type(model).__name__}: torch.export cannot trace it: {reason}") from error


class _State:
    """The placeholders of an exported graph, told apart; tied tensors share the first of their names."""

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
        placeholders = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
        for spec in exported.graph_signature.input_specs:
            placeholder, target = spec.arg.name, str(spec.target)
            if spec.kind == InputKind.USER_INPUT:
                if isinstance(placeholders[placeholder].meta.get("val"), torch.Tensor):
                    self.inputs.append(placeholders[placeholder])
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


def _is_integer(node: fx.Node) -> bool:
    return node.op == "call_function" and isinstance(
        node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool | int | float | bool
    )


def _integers(nodes: list[fx.Node]) -> dict[fx.Node, None]:
    """The computed sizes that ops take, in order."""
    return dict.fromkeys(source for node in nodes for source in node_inputs(node) if _is_integer(source))


def _expression(value: Any) -> Any:
    return value.node.expr if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool) else value


def _batch_input(node: fx.Node, example: torch.Tensor) -> BatchInput:
    sizes = node.meta["val"].shape
    symbolic = {d: _expression(size) for d, size in enumerate(sizes) if isinstance(size, torch.SymInt)}
    return BatchInput(node.name, tuple(example.shape), symbolic)


def _batch_size(tensors: list[torch.Tensor]) -> int:
    return max((tensor.shape[0] for tensor in tensors if tensor.dim()), default=1)


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _ops(graph: fx.Graph) -> list[fx.Node]:
    """The calls that compute tensors and whose result, or whose effect on a buffer, somebody needs."""
    needed: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node in needed or (node.op == "call_function" and _changes_buffer(node)):
            needed.add(node)
            needed.update(node_inputs(node))
    return [node for node in graph.nodes if node.op == "call_function" and node in needed and not _is_integer(node)]


def _output(graph: fx.Graph, nodes: list[fx.Node]) -> int:
    """The op whose value is the loss, or the first output."""
    value = next(node_inputs(next(node for node in reversed(graph.nodes) if node.op == "output")), None)
    if value not in nodes:
        raise SegueError("model: the first output must be a tensor that the model computes")
    return nodes.index(value)


def _check_ops(graph: fx.Graph, nodes: list[fx.Node], state: _State) -> None:
    """Raise `SegueError` for what has no form as single ops whose sizes follow from the batch's."""
    known = {symbol for node in state.inputs for size in _symbols(node) for symbol in size.free_symbols}
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise SegueError(
                f"model: {node.name}: a {node.target} region (torch.no_grad, torch.autocast or control flow in the "
                "forward pass) cannot be captured; use detach() or move it out of forward"
            )
    for node in (*nodes, *_integers(nodes)):
        if any(not size.free_symbols <= known for size in _symbols(node)):
            raise SegueError(
                f"model: {node.name}: the size or number that {_kind(node)} computes depends on the batch's values; "
                "only sizes that follow from the batch's shapes can be captured"
            )


def _symbols(node: fx.Node) -> list[Any]:
    """Symbolic sizes and numbers in a node's value."""
    values = []
    for leaf in pytree.tree_leaves(node.meta.get("val")):
        values.extend(map(_expression, leaf.shape if isinstance(leaf, torch.Tensor) else [leaf]))
    return [value for value in values if hasattr(value, "free_symbols")]


def _changed(node: fx.Node) -> fx.Node | None:
    """The placeholder that an in-place op changes, at once or through other in-place ops."""
    base = node
    while base.op == "call_function" and _mutates(base):
        first = next(node_inputs(base), None)
        if first is None:
            return None
        base = first
    return base if base is not node and base.op == "placeholder" else None


def _changes_buffer(node: fx.Node) -> bool:
    return _changed(node) is not None


def _delay_buffer_updates(nodes: list[fx.Node], prefix: str) -> dict[fx.Node, fx.Node]:
    """Move updates that nobody reads (BatchNorm's batch counter) behind the next op of their module, in place.

    They have no edges, and would otherwise be stages of their own.

    Returns:
        Each such update and the op it now follows.
    """
    after: dict[fx.Node, fx.Node] = {}
    for node in [node for node in nodes if _changes_buffer(node) and not node.users]:
        position = nodes.index(node)
        module = _module(node, prefix)
        later = (n for n in nodes[position + 1 :] if not _changes_buffer(n))
        target = next((n for n in later if module and _module(n, prefix) == module), None)
        if target is not None:
            nodes.remove(node)
            nodes.insert(nodes.index(target) + 1, node)
            after[node] = target
    return after


def _make_functional(graph: fx.Graph, state: _State) -> None:
    """Replace in-place ops on computed values and on the batch (`relu_`) by their functional forms (`relu`).

    The values are the same; but a value that other ops read cannot be overwritten once it may be needed on another
    device. In-place updates of buffers stay.

    Raises:
        SegueError: for an in-place op on a view or a viewed value, or without a functional form.
    """
    order = {node: position for position, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.op != "call_function" or not _mutates(node):
            continue
        changed = _changed(node)
        if changed is not None and changed not in state.inputs:
            continue
        if node.target._schema.name.rsplit("::")[-1] in _UPDATES_BUFFERS:
            continue
        base = node.args[0]
        name = node.target._schema.name.rsplit("::")[-1]
        functional = getattr(getattr(torch.ops.aten, name.removesuffix("_"), None), node.target._overloadname, None)
        if not name.endswith("_") or functional is None or not isinstance(base, fx.Node) or _is_view(base):
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
    views = [user for user in node.users if user.op == "call_function" and _is_view(user)]
    return views + [deeper for view in views for deeper in _views(view)]


_UPDATES_BUFFERS = {"batch_norm", "instance_norm", "native_batch_norm", "_native_batch_norm_legit"}


def _is_view(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)


class _FakeRun:
    """One forward pass over fake tensors that counts, op by op, what is computed, moved and kept for backward."""

    def __init__(self, state: _State, inputs: dict[str, torch.Tensor]):
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.values: dict[str, Any] = {}
        self.state_storages: set[int] = set()
        for name, tensor in state.tensors.items():
            fake = self._fake(tensor)
            fake.requires_grad_(state.parameters.get(name) in state.trainable)
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
        """Columns of costs, an entry an op."""
        columns: dict[str, list[float]] = defaultdict(list)
        keep_alive = []
        hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)
        with self.mode, torch.enable_grad(), hooks:
            for node in nodes:
                self.saved = 0.0
                args, kwargs = fx.map_arg((node.args, node.kwargs), self._value)
                output = node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]
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
        kind = _kind(node)
        operands = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        forward = forward_flops(kind, args, output)
        needs_grad = _needs_grad(output)
        differentiated = sum(leaf.requires_grad for leaf in operands[:2]) if needs_grad else 0
        view = _is_view(node)
        return {
            "forward_flops": 0.0 if view else forward,
            "backward_flops": 0.0 if view else backward_flops(kind, forward, differentiated),
            "read_bytes": 0.0 if view else sum(map(_nbytes, operands)),
            "written_bytes": 0.0 if view else _nbytes(output),
            "saved_bytes": self.saved,
            "output_bytes": _nbytes(output),
            "requires_grad": needs_grad,
        }


_COLUMNS = ("forward_flops", "backward_flops", "read_bytes", "written_bytes", "saved_bytes")


def _hint(value: Any) -> Any:
    return value.node.hint if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool) else value


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _nbytes(value: Any) -> float:
    return float(sum(t.numel() * t.element_size() for t in pytree.tree_leaves(value) if isinstance(t, torch.Tensor)))


def _needs_grad(value: Any) -> bool:
    return any(isinstance(leaf, torch.Tensor) and leaf.requires_grad for leaf in pytree.tree_leaves(value))


def _kind(node: fx.Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.rsplit("::")[-1]
    return getattr(node.target, "__name__", str(node.target))


def _module(node: fx.Node, prefix: str) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = stack[-1][0] if stack and isinstance(stack[-1][0], str) else ""
    return "" if path.startswith("_empty") else f"{path}.".removeprefix(prefix).removesuffix(".")


def _graph(
    name: str,
    nodes: list[fx.Node],
    after: dict[fx.Node, fx.Node],
    state: _State,
    costs: dict[str, list[float]],
    batch_size: int,
    prefix: str,
) -> Graph:
    position = {node: op for op, node in enumerate(nodes)}
    edges = [
        (position[source], op)
        for node, op in position.items()
        for source in (*node_inputs(node), *([after[node]] if node in after else []), *_readers(node, position))
        if source in position
    ]
    modules = [_module(node, prefix) for node in nodes]
    parameter_bytes, buffer_bytes = np.zeros(len(nodes)), np.zeros(len(nodes))
    counted: set[str] = set()
    for op, node in enumerate(nodes):
        for source in node_inputs(node):
            tensor_name = state.name(source.name)
            if tensor_name is None or tensor_name in counted:
                continue
            counted.add(tensor_name)
            column = parameter_bytes if tensor_name in state.trainable else buffer_bytes
            column[op] += _nbytes(state.tensors[source.name])
    requires_grad = np.array(costs.pop("requires_grad"), bool)
    return make_graph(
        name,
        edges,
        len(nodes),
        batch_size=batch_size,
        names=[node.name for node in nodes],
        kinds=[_kind(node) for node in nodes],
        modules=modules,
        requires_grad=requires_grad,
        colocation=_colocation(nodes, position, after, state),
        parameter_bytes=parameter_bytes,
        buffer_bytes=buffer_bytes,
        **{column: np.array(values) for column, values in costs.items()},
    )


def _readers(node: fx.Node, position: dict[fx.Node, int]) -> list[fx.Node]:
    """The ops that read a buffer before this op changes it."""
    readers: list[fx.Node] = []
    base = node
    while base.op == "call_function" and _mutates(base):
        base = next(node_inputs(base))
        readers.extend(user for user in base.users if position.get(user, len(position)) < position[node])
    return readers


def _colocation(
    nodes: list[fx.Node], position: dict[fx.Node, int], after: dict[fx.Node, fx.Node], state: _State
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
            tensor_name = state.name((_changed(source) or source).name)
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
