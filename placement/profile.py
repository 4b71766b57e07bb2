"""Measured ops: seconds and memory of every op's forward and backward, one by one, on a device of this machine."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import fx

from .costs import Profile
from .gpus import product_name
from .program import Program, node_inputs
from .working_memory import Watch, watch_memory

# More than caches hold, as the parameters of a model are.
_UPDATE_ELEMENTS = 1 << 22


def measure_profile(
    program: Program,
    tensors: dict[str, torch.Tensor],
    batch: list[torch.Tensor],
    device: torch.device | str = "cpu",
    repeats: int = 5,
    progress: Callable[[int], None] | None = None,
) -> Profile:
    """Run every op alone and take the shortest of its times; whatever disturbs a measurement makes it longer.

    After that every op runs once more, with its allocations watched.

    Args:
        program: the captured model.
        tensors: parameters and buffers by name; they are copied, never changed.
        batch: one microbatch of `program.graph.batch_size` samples, in the order of `Program.inputs`.
        device: where to run.
        repeats: timed runs of each op, after one to warm up.
        progress: called with the number of each op when it is done.

    Returns:
        Seconds and working memory of each op for one microbatch; `model` says which GPU, if it is one of `GPUS`.
    """
    device = torch.device(device)
    # One run after the other: each has a copy of the parameters.
    forward, backward = _seconds(_Run(program, tensors, batch, device), repeats, progress)
    working = _working_bytes(_Run(program, tensors, batch, device))
    model = product_name(torch.cuda.get_device_name(device)) if device.type == "cuda" else ""
    return Profile(forward, backward, _update_seconds(program, device), "measured", model, working)


def _seconds(run: "_Run", repeats: int, progress: Callable[[int], None] | None) -> tuple[np.ndarray, np.ndarray]:
    """`Profile.forward_s` and `Profile.backward_s`."""
    engine_s = _engine_seconds(run.device)
    count = run.program.graph.num_ops
    forward, backward = np.zeros(count), np.zeros(count)
    for op in range(count):
        forward[op], backward[op] = run.time(op, repeats)
        # A step asks autograd for a whole stage at once, not for every op.
        backward[op] = max(backward[op] - engine_s, 0.1 * backward[op])
        if progress is not None:
            progress(op)
    return forward, backward


def _working_bytes(run: "_Run") -> np.ndarray | None:
    """`Profile.working_bytes`, from what every op's passes allocate; none if that cannot be seen."""
    graph = run.program.graph
    with watch_memory(run.device) as (watch, allocated):
        for op in range(graph.num_ops):
            run.watch(op, watch)
    if not allocated:
        return None
    working = np.zeros(graph.num_ops)
    for op in range(graph.num_ops):
        forward = allocated[f"forward {op}"]
        working[op] = forward.peak - forward.kept
        if f"backward {op}" in allocated:
            working[op] = max(working[op], graph.output_bytes[op] + allocated[f"backward {op}"].peak)
    return working


class _Run:
    """A forward pass in which every op's inputs are at hand to run it again."""

    def __init__(
        self, program: Program, tensors: dict[str, torch.Tensor], batch: list[torch.Tensor], device: torch.device
    ):
        self.program = program
        self.device = device
        self.position = {node: op for op, node in enumerate(program.nodes)}
        self.values: dict[str, Any] = dict(program.sizes(program.bindings(batch)))
        for spec, tensor in zip(program.inputs, batch, strict=True):
            self.values[spec.placeholder] = tensor.to(device)
        for placeholder, name in (program.parameters | program.buffers).items():
            self.values[placeholder] = tensors[name].detach().to(device, copy=True)
        self.values |= {name: tensor.to(device) for name, tensor in program.constants.items()}
        self.trainable = {p for p, name in program.parameters.items() if name in program.trainable}
        last_use = {source.name: op for op, node in enumerate(program.nodes) for source in node_inputs(node)}
        self.dead_after: dict[int, list[str]] = {}
        for name, op in last_use.items():
            self.dead_after.setdefault(op, []).append(name)

    def time(self, op: int, repeats: int) -> tuple[float, float]:
        """Shortest seconds of an op's forward and backward; its value is kept for the ops that read it."""
        sums = self._sums(op)
        times = [self._once(op, sums) for _ in range(repeats + 1)][1:]
        self._forget(op)
        return min(forward for forward, _ in times), min(backward for _, backward in times)

    def watch(self, op: int, watch: Watch) -> None:
        """Run an op with `watch` around its passes, called `forward {op}` and `backward {op}`."""
        self._once(op, self._sums(op), watch)
        self._forget(op)

    def _sums(self, op: int) -> dict[str, torch.Tensor]:
        """Gradients of earlier microbatches, which an op's own are added to."""
        names = [source.name for source in node_inputs(self.program.nodes[op])]
        return {name: torch.zeros_like(self.values[name]) for name in names if name in self.trainable}

    def _once(self, op: int, sums: dict[str, torch.Tensor], watch: Watch = nullcontext) -> tuple[float, float]:
        """Seconds of one forward and backward."""
        node = self.program.nodes[op]
        leaves = {source.name: self._leaf(source) for source in node_inputs(node)}
        with watch(f"forward {op}"):
            start = self._now()
            output = self._call(node, leaves)
            forward = self._now() - start
        self.values[node.name] = _detached(output)
        differentiated = bool(self.program.graph.requires_grad[op])
        return forward, self._backward(output, leaves, sums, watch(f"backward {op}")) if differentiated else 0.0

    def _forget(self, op: int) -> None:
        """Drop what no later op reads."""
        for name in self.dead_after.get(op, []):
            if name in self.values and name not in self.program.buffers and name not in self.program.parameters:
                del self.values[name]

    def _leaf(self, source: fx.Node) -> Any:
        value = self.values[source.name]
        op = self.position.get(source)
        needs_grad = source.name in self.trainable or (op is not None and bool(self.program.graph.requires_grad[op]))
        if isinstance(value, torch.Tensor):
            return value.detach().requires_grad_() if needs_grad and value.is_floating_point() else value
        if not isinstance(value, tuple):
            return value
        return tuple(item.detach().requires_grad_(item.is_floating_point()) for item in value)

    def _call(self, node: fx.Node, leaves: dict[str, Any]) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: leaves[source.name])
        if "device" in kwargs:
            kwargs = {**kwargs, "device": self.device}
        return node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]

    def _backward(
        self, output: Any, leaves: dict[str, Any], sums: dict[str, torch.Tensor], watched: AbstractContextManager[Any]
    ) -> float:
        outputs = [t for t in _tensors(output) if t.requires_grad]
        inputs = [(name, t) for name, leaf in leaves.items() for t in _tensors(leaf) if t.requires_grad]
        if not outputs or not inputs:
            return 0.0
        grads = [torch.ones_like(t) for t in outputs]
        with watched:
            start = self._now()
            found = torch.autograd.grad(outputs, [t for _, t in inputs], grads, allow_unused=True)
            for (name, _), gradient in zip(inputs, found, strict=True):
                if name in sums and gradient is not None:
                    sums[name].add_(gradient)
            return self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for item in value for t in _tensors(item)] if isinstance(value, tuple | list) else []


def _detached(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach()
    return tuple(_detached(item) for item in value) if isinstance(value, tuple | list) else value


def _engine_seconds(device: torch.device) -> float:
    """Seconds that asking autograd for a gradient takes, however little there is to compute."""
    leaf = torch.zeros(1, device=device, requires_grad=True)
    times = []
    for _ in range(50):
        output = leaf.view(1)
        grad = torch.ones_like(output)
        start = time.perf_counter()
        torch.autograd.grad([output], [leaf], [grad], allow_unused=True)
        times.append(time.perf_counter() - start)
    return min(times)


def _update_seconds(program: Program, device: torch.device) -> np.ndarray:
    """Seconds of an Adam update of each op's parameters, from the rate of one large and one small tensor."""

    def seconds(elements: int) -> float:
        parameter = torch.zeros(elements, device=device, requires_grad=True)
        parameter.grad = torch.ones_like(parameter)
        optimizer = torch.optim.Adam([parameter])
        times = []
        for _ in range(6):
            start = time.perf_counter()
            optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
        return min(times[1:])

    small, large = seconds(1), seconds(_UPDATE_ELEMENTS)
    per_byte = max(0.0, large - small) / (4 * _UPDATE_ELEMENTS)
    tensors = np.zeros(program.graph.num_ops)
    counted: set[str] = set()
    for op, node in enumerate(program.nodes):
        names = {program.parameters[s.name] for s in node_inputs(node) if s.name in program.parameters}
        tensors[op] = len((names & program.trainable) - counted)
        counted |= names
    return small * tensors + per_byte * program.graph.parameter_bytes
