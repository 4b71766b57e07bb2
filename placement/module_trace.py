"""`trace_modules`: the graph of one real training step at the granularity of module calls."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from .errors import SegueError
from .flops import dispatched_flops, is_product
from .graph import Graph
from .runs import ModelState, Run, runs_graph, storage_of


def trace_modules(model: nn.Module, example_inputs: tuple[Any, ...], *, name: str = "", prefix: str = "") -> Graph:
    """Run one training step of `model(*example_inputs)` and aggregate what it did by module calls.

    An op of the graph is a run of consecutive aten calls of one call of one innermost module, so that every edge runs
    forward in time and there is no cycle. A call joins the run before it if it reads what that run wrote (parallel
    branches stay apart) and is not the run's second product with a parameter (a model in one module is not one op). Edges
    follow the tensors' memory, from the run that wrote it last to those
    that read it; views cost nothing and belong to their readers. The backward pass is run too, and what it computes is
    attributed through autograd to the run whose calls it differentiates. Buffers, gradients and the random generators are
    as before afterwards; any other state that the model keeps is as after a forward pass.

    Args:
        model: any module; its first differentiable output (its first output if there is none) is the loss.
        example_inputs: positional arguments; the first dimension of every tensor is the batch.
        name: the graph's name; by default the module's class.
        prefix: dropped from the front of parameter names and module paths (`model.` for a `TrainingStep`).

    Raises:
        SegueError: if the step itself fails, as on the meta device where it depends on values.
    """
    label = type(model).__name__
    state = ModelState(model, prefix)
    trace = _Trace(state)
    inputs = pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, example_inputs)
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]
    try:
        with _unchanged(model, tensors), _module_calls(model, trace.calls), torch.enable_grad():
            hooks = torch.autograd.graph.saved_tensors_hooks(trace.keep, lambda tensor: tensor)
            with hooks, trace:
                outputs = pytree.tree_leaves(_plain(model(*inputs)))
            outputs = [leaf for leaf in outputs if isinstance(leaf, torch.Tensor)]
            if not outputs or not trace.runs:
                raise SegueError(f"model {label}: cannot be traced: it computes no tensor")
            trace.leave(outputs)
            trace.settle()
            trace.backward(next((leaf for leaf in outputs if leaf.requires_grad), outputs[0]))
    except SegueError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        if any(tensor.is_meta for tensor in (*tensors, *model.parameters(), *model.buffers())):
            reason = f"its step depends on values, which the meta device does not have; give it real tensors: {reason}"
        raise SegueError(f"model {label}: cannot be traced: {reason}") from error
    batch_size = max((tensor.shape[0] for tensor in tensors if tensor.dim()), default=1)
    return runs_graph(name or label, trace.runs, trace.edges, state, batch_size, prefix)


class _Trace(TorchDispatchMode):
    """Watches every aten call of a forward and a backward pass.

    Attributes:
        calls: the module calls that are under way, innermost last; each a path and a number.
        runs: what was done, in order.
        edges: pairs of runs.
    """

    def __init__(self, state: ModelState):
        super().__init__()
        self.state = state
        self.calls: list[tuple[str, int]] = [("", 0)]
        self.runs: list[Run] = []
        self.edges: set[tuple[int, int]] = set()
        self._call: tuple[str, int] | None = None
        self._alive: dict[int, StorageWeakRef] = {}
        self._writer: dict[int, int] = {}
        self._readers: dict[int, set[int]] = defaultdict(set)
        self._saved: dict[int, tuple[int, float]] = {}
        self._sequence: list[tuple[int, int]] = []
        self._differentiating = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if self._differentiating:
            self._differentiate(func, args, kwargs or {}, output)
        elif not _is_view(func):
            self._record(func, args, kwargs or {}, output)
        return output

    def _run_of(self, func: Any, operands: list[torch.Tensor]) -> int:
        """The number of the run that a call belongs to: the last one or a new one."""
        last = len(self.runs) - 1
        memory = [self._memory(tensor) for tensor in operands]
        multiplies = is_product(func) and any(storage in self.state.names for storage in memory)
        joins = self._call == self.calls[-1] and any(self._writer.get(storage) == last for storage in memory)
        if not joins or (multiplies and self.runs[last].multiplied):
            self._call = self.calls[-1]
            self.runs.append(Run(self._call[0]))
        self.runs[-1].multiplied = self.runs[-1].multiplied or multiplies
        return len(self.runs) - 1

    def _record(self, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        operands, results = _tensors((args, kwargs)), _tensors(output)
        number = self._run_of(func, operands)
        run = self.runs[number]
        for tensor in operands:
            self._read(tensor, number)
        for tensor in _written(func, args, kwargs):
            storage = self._memory(tensor)
            self.edges |= {(reader, number) for reader in self._readers.pop(storage, set()) if reader != number}
            self._writer[storage] = number
        known = {self._memory(tensor) for tensor in operands}
        for tensor in results:
            storage = self._memory(tensor)
            if storage not in known:
                self._writer[storage] = number
        kind = str(func._schema.name).rsplit("::")[-1]
        run.flops[kind] += dispatched_flops(func, args, kwargs, output)
        run.costs["read_bytes"] += sum(tensor.nbytes for tensor in operands)
        run.costs["written_bytes"] += sum(tensor.nbytes for tensor in results)
        # A call's autograd node was numbered just before: nodes with smaller numbers are its own or of views before it.
        self._sequence.append((_sequence_number(), number))

    def _read(self, tensor: torch.Tensor, number: int) -> None:
        storage = self._memory(tensor)
        self.runs[number].state |= dict.fromkeys(self.state.names.get(storage, []))
        self._readers[storage].add(number)
        writer = self._writer.get(storage)
        if writer is not None and writer != number:
            self.edges.add((writer, number))
            self._leave(tensor, storage, writer)

    def _leave(self, tensor: torch.Tensor, storage: int, writer: int) -> None:
        nbytes = float(min(tensor.nbytes, tensor.untyped_storage().nbytes()))
        run = self.runs[writer]
        run.outputs[storage] = max(run.outputs.get(storage, 0.0), nbytes)
        run.requires_grad = run.requires_grad or tensor.requires_grad

    def leave(self, outputs: list[torch.Tensor]) -> None:
        """Count what the model returns among what its writers give away."""
        for tensor in outputs:
            writer = self._writer.get(self._memory(tensor))
            if writer is not None:
                self._leave(tensor, self._memory(tensor), writer)

    def _memory(self, tensor: torch.Tensor) -> int:
        storage = storage_of(tensor)
        if storage not in self._alive:
            # While somebody refers to it, even weakly, no other storage can have its address.
            self._alive[storage] = StorageWeakRef(tensor.untyped_storage())
        return storage

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Note a tensor that autograd saves, once for its memory; the model's own tensors are no activations."""
        storage = self._memory(tensor)
        if storage not in self._saved and storage not in self.state.names:
            self._saved[storage] = (_sequence_number(), float(tensor.untyped_storage().nbytes()))
        return tensor

    def settle(self) -> None:
        """Count what was saved at the runs that saved it."""
        for sequence, nbytes in self._saved.values():
            position = min(bisect_left(self._sequence, (sequence, -1)), len(self._sequence) - 1)
            self.runs[self._sequence[position][1]].costs["saved_bytes"] += nbytes

    def backward(self, loss: torch.Tensor) -> None:
        """Differentiate the loss by the trained parameters."""
        if not loss.requires_grad or not self.state.parameters:
            return
        loss = loss if loss.dim() == 0 else loss.sum()
        self._differentiating = True
        self._last = self._sequence[-1][1]
        with self:
            torch.autograd.grad(loss, self.state.parameters, allow_unused=True)

    def _differentiate(self, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        node = torch._C._current_autograd_node()
        if node is None or _is_view(func):
            return
        position = bisect_right(self._sequence, (node._sequence_nr(), len(self.runs)))
        # A node made during the backward pass (recomputation) counts where the pass was.
        if position < len(self._sequence):
            self._last = self._sequence[position][1]
        self.runs[self._last].costs["backward_flops"] += dispatched_flops(func, args, kwargs, output)


def _sequence_number() -> int:
    """The number that the next autograd node will get."""
    return torch._C._autograd._get_sequence_nr()  # pyright: ignore[reportAttributeAccessIssue]


def _plain(value: Any) -> Any:
    """A model's output with dataclass-like outputs (transformers' ModelOutput is a dict) as tuples."""
    return tuple(value.values()) if isinstance(value, dict) else value


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return any(r.alias_info is not None and not r.alias_info.is_write for r in returns) and not func._schema.is_mutable


def _written(func: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    arguments = func._schema.arguments
    given = dict(zip((argument.name for argument in arguments), args, strict=False)) | kwargs
    names = [
        argument.name for argument in arguments if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return _tensors([given.get(name) for name in names])


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


@contextmanager
def _module_calls(model: nn.Module, calls: list[tuple[str, int]]) -> Iterator[None]:
    """Keep in `calls` which module calls are under way."""
    number = 0

    def enter(path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            nonlocal number
            number += 1
            calls.append((path, number))

        return hook

    def leave(*_: Any) -> None:
        calls.pop()

    with ExitStack() as stack:
        for path, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(enter(path), prepend=True).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield


@contextmanager
def _unchanged(model: nn.Module, tensors: list[torch.Tensor]) -> Iterator[None]:
    """Put buffers and random generators back as they were."""
    kept = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    with torch.random.fork_rng(devices={tensor.device for tensor in tensors if tensor.is_cuda}):
        try:
            yield
        finally:
            with torch.no_grad():
                for module, name, buffer, value in kept:
                    module._buffers[name] = buffer.copy_(value)
