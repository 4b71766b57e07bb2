"""`Segment`: the ops of one stage as a function with a forward and a backward."""

from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from ..program import Program, node_inputs
from .fanout import fanout
from .wiring import Slot, Wiring


class Argument(NamedTuple):
    """One input of a segment's function.

    Attributes:
        kind: `state` (parameter, buffer or constant), `batch`, `size`, `value` (of another stage, without gradient), `leaf`
            (of another stage, with gradient) or `seed`.
        key: placeholder, input number, size name, op, slot or nothing, by kind.
    """

    kind: str
    key: Any


@dataclass
class Pass:
    """What a segment keeps of one microbatch between forward and backward."""

    leaves: dict[Slot, torch.Tensor] = field(default_factory=dict)
    roots: dict[Slot, torch.Tensor] = field(default_factory=dict)


class Segment:
    """The ops of one stage, generated as one Python function.

    Every gradient slot has a tensor of its own, and a value that other stages read besides this one goes through `fanout`, so
    that gradients are summed in the order of a plain backward pass whatever the placement. Ops that draw random numbers
    are seeded by step, microbatch and op.

    Args:
        program: the captured model.
        wiring: what crosses stages.
        stage: which stage.
        ops: its ops, ascending.
        device: where its tensors live.
        metrics: ops of the program whose values are returned beside the loss.
    """

    def __init__(
        self,
        program: Program,
        wiring: Wiring,
        stage: int,
        ops: list[int],
        device: torch.device,
        metrics: Collection[int] = (),
    ):
        self.program = program
        self.stage = stage
        self.ops = ops
        self.values = [op for op in ops if op in wiring.read_elsewhere or op == program.output or op in metrics]
        # The whole program's, so that an op runs the same kernel in whichever stage it is.
        self.differentiates = bool(program.graph.requires_grad.any())
        self.reads = wiring.reads.get(stage, [])
        self.arguments: list[Argument] = []
        self.root_slots: list[Slot] = []
        self._function = _Builder(self, wiring, device).build()

    def forward(self, fetch: Callable[[Argument], Any]) -> tuple[dict[int, torch.Tensor], Pass]:
        """Run the ops of one microbatch.

        Args:
            fetch: gives the tensor or number of each argument.

        Returns:
            The values that other stages read, the loss and metrics (detached), and what `backward` needs.
        """
        kept = Pass()
        given = []
        for argument in self.arguments:
            value = fetch(argument)
            if argument.kind == "leaf":
                value = value.detach().requires_grad_()
                kept.leaves[argument.key] = value
            given.append(value)
        with torch.set_grad_enabled(self.differentiates):
            outputs = self._function(*given)
        values = dict(zip(self.values, outputs, strict=False))
        roots = outputs[len(self.values) :]
        kept.roots = {slot: root for slot, root in zip(self.root_slots, roots, strict=True) if root.requires_grad}
        return {op: value.detach() for op, value in values.items()}, kept

    def backward(self, kept: Pass, grads: dict[Slot, torch.Tensor]) -> dict[Slot, torch.Tensor]:
        """Gradients of the parameters (accumulated) and of every slot that this stage read (returned)."""
        slots = [slot for slot in kept.roots if slot in grads]
        if slots:
            torch.autograd.backward([kept.roots[slot] for slot in slots], [grads[slot] for slot in slots])
        return {
            slot: leaf.grad if leaf.grad is not None else torch.zeros_like(leaf) for slot, leaf in kept.leaves.items()
        }


LOSS = -1
"""Stands for the consumer of the loss in its `Slot`."""


class _Builder:
    """Writes a segment's function as an `fx.Graph`."""

    def __init__(self, segment: Segment, wiring: Wiring, device: torch.device):
        self.segment = segment
        self.program = segment.program
        self.wiring = wiring
        self.device = device
        self.graph = fx.Graph()
        self.inputs: dict[Argument, fx.Node] = {}
        self.position = {node: op for op, node in enumerate(self.program.nodes)}
        self.batch = {spec.placeholder: i for i, spec in enumerate(self.program.inputs)}
        self.raw: dict[int, fx.Node] = {}
        self.alias: dict[tuple[int, int], fx.Node] = {}
        self.roots: dict[Slot, fx.Node] = {}

    def build(self) -> Callable[..., tuple[torch.Tensor, ...]]:
        for op in self.segment.reads:
            for slot in self.wiring.slots.get(op, []):
                if self.wiring.stage_of[slot.consumer] == self.segment.stage:
                    leaf = self._argument(Argument("leaf", slot))
                    self._spread(op, leaf, list(self.wiring.consumers[slot]))
        for op in self.segment.ops:
            self._emit(op)
        self.segment.root_slots = list(self.roots)
        self.segment.arguments = list(self.inputs)
        outputs = [self.raw[op] for op in self.segment.values]
        self.graph.output(tuple(outputs + list(self.roots.values())))
        module = fx.GraphModule(nn.Module(), self.graph)
        return module.forward

    def _argument(self, argument: Argument) -> fx.Node:
        if argument not in self.inputs:
            name = f"{argument.kind}_{len(self.inputs)}"
            first = next((n for n in self.graph.nodes if n.op != "placeholder"), None)
            with self.graph.inserting_before(first) if first is not None else nullcontext():
                self.inputs[argument] = self.graph.placeholder(name)
        return self.inputs[argument]

    def _emit(self, op: int) -> None:
        node = self.program.nodes[op]
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: self._read(source, op))
        if "device" in kwargs:
            kwargs = {**kwargs, "device": self.device}
        target: Any = node.target
        if torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()):
            target, args = seeded(target, op), (self._argument(Argument("seed", None)), *args)
        self.raw[op] = self.graph.call_function(target, args, kwargs)
        if self.program.graph.requires_grad[op] and self.program.is_tensor(op):
            self._spread(op, self.raw[op], self._readers(op))

    def _readers(self, op: int) -> list[int | Slot]:
        """Who contributes to the gradient of a value of this stage, from last to first."""
        readers: list[int | Slot] = [Slot(op, LOSS)] if op == self.program.output else []
        for slot in self.wiring.slots[op]:
            mine = self.wiring.stage_of[slot.consumer] == self.segment.stage
            readers += self.wiring.consumers[slot] if mine else [slot]
        return readers

    def _spread(self, op: int, value: fx.Node, readers: list[Any]) -> None:
        """Give every reader of a value its own reference, where autograd would not add their gradients in our order."""
        aliases = [value] * len(readers)
        if len(readers) > 1 and any(isinstance(r, Slot) or self._reads_often(r, op) for r in readers):
            spread = self.graph.call_function(fanout, (value, len(readers)))
            aliases = [self.graph.call_function(_item, (spread, i)) for i in range(len(readers))]
        for reader, alias in zip(readers, aliases, strict=True):
            if isinstance(reader, Slot):
                self.roots[reader] = alias
            else:
                self.alias[op, reader] = alias

    def _reads_often(self, reader: int, op: int) -> bool:
        """Whether an op has a value as several arguments: their gradients are added first, as they are on another device."""
        return list(node_inputs(self.program.nodes[reader])).count(self.program.nodes[op]) > 1

    def _read(self, source: fx.Node, reader: int) -> fx.Node:
        op = self.position.get(source)
        if op is not None:
            if (op, reader) in self.alias:
                return self.alias[op, reader]
            return self.raw[op] if op in self.raw else self._argument(Argument("value", op))
        if source.name in self.batch:
            return self._argument(Argument("batch", self.batch[source.name]))
        if source.op == "placeholder":
            return self._argument(Argument("state", source.name))
        return self._argument(Argument("size", source.name))


def _item(items: tuple[torch.Tensor, ...], index: int) -> torch.Tensor:
    return items[index]


def seeded(target: Callable[..., Any], op: int) -> Callable[..., Any]:
    """`target` drawing the random numbers of (seed, op), which leaves the global generators as they were."""

    def draw(seed: int, *args: Any, **kwargs: Any) -> Any:
        generators = _generators(args, kwargs.get("device"))
        states = [generator.get_state() for generator in generators]
        try:
            # `torch.manual_seed` would seed every kind of device, which takes longer than most ops.
            for generator in generators:
                generator.manual_seed((seed * 1_000_003 + op) % 2**63)
            return target(*args, **kwargs)
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)

    return draw


def _generators(args: tuple[Any, ...], made_on: torch.device | None) -> list[torch.Generator]:
    """The CPU's generator, and those of the GPUs that the arguments are on or that a new tensor is made on."""
    devices = [arg.device for arg in args if isinstance(arg, torch.Tensor)]
    gpus = {device.index for device in [*devices, made_on] if device is not None and device.type == "cuda"}
    return [torch.default_generator, *(torch.cuda.default_generators[gpu] for gpu in sorted(gpus))]
