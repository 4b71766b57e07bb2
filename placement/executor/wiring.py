"""`Wiring`: which values and gradients pass between the stages of a placement."""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ..program import Program, node_inputs
from ..stages import Stages


class Slot(NamedTuple):
    """One tensor of gradient that flows back to a value.

    Attributes:
        op: the op whose value it is the gradient of.
        consumer: the last of the consumers whose gradients it sums; names the slot together with `op`.
    """

    op: int
    consumer: int


@dataclass(frozen=True)
class Wiring:
    """What crosses stages, derived from program and stages alone, so that every worker knows it.

    Attributes:
        reads: values that each stage takes from other stages, ascending ops.
        consumers: consumers whose gradients each slot sums, from last to first.
        slots: slots of each op's value, from the last consumer to the first.
        stage_of: stage of every op.
        values: ops whose values a stage sends to a device, ascending, by (stage, device).
        gradients: slots that a stage sends to a device, by (stage, device).
    """

    reads: dict[int, list[int]]
    consumers: dict[Slot, list[int]]
    slots: dict[int, list[Slot]]
    stage_of: list[int]
    values: dict[tuple[int, int], list[int]]
    gradients: dict[tuple[int, int], list[Slot]]

    @cached_property
    def read_elsewhere(self) -> frozenset[int]:
        """Ops whose values another stage reads."""
        return frozenset(op for ops in self.reads.values() for op in ops)

    def signature(self, stage: int, ops: list[int]) -> tuple:
        """All that a stage's segment depends on; two stages with one signature can share it."""
        outside = [op for op in ops if op in self.read_elsewhere]
        slots = []
        for op in (*ops, *self.reads.get(stage, [])):
            for slot in self.slots.get(op, []):
                mine = self.stage_of[slot.consumer] == stage
                slots.append((slot, mine, tuple(self.consumers[slot]) if mine else ()))
        return tuple(ops), tuple(outside), tuple(self.reads.get(stage, [])), tuple(slots)

    def local_readers(self, device: int, stages: Stages) -> dict[int, int]:
        """How often each value is read on a device by other stages than its own, or sent from it."""
        count: dict[int, int] = defaultdict(int)
        for stage, ops in self.reads.items():
            if stages.device[stage] == device:
                for op in ops:
                    count[op] += 1
        for (stage, _), ops in self.values.items():
            if stages.device[stage] == device:
                for op in ops:
                    count[op] += 1
        return dict(count)


def wire(program: Program, stages: Stages) -> Wiring:
    """Find the values and gradients that cross stages."""
    stage_of = stages.stage_of.tolist()
    device_of = stages.device.tolist()
    graph = program.graph
    readers = _readers(program)
    reads: dict[int, set[int]] = defaultdict(set)
    values: dict[tuple[int, int], list[int]] = defaultdict(list)
    gradients: dict[tuple[int, int], list[Slot]] = defaultdict(list)
    consumers: dict[Slot, list[int]] = {}
    slots: dict[int, list[Slot]] = {}
    for op, targets in enumerate(readers):
        stage = stage_of[op]
        for target in targets:
            if stage_of[target] != stage:
                reads[stage_of[target]].add(op)
        for device in sorted({device_of[stage_of[target]] for target in targets} - {device_of[stage]}):
            values[stage, device].append(op)
        if graph.requires_grad[op]:
            slots[op] = _slots_of(op, [t for t in reversed(targets) if graph.requires_grad[t]], stage_of, consumers)
            for slot in slots[op]:
                other = stage_of[slot.consumer]
                if device_of[other] != device_of[stage]:
                    gradients[other, device_of[stage]].append(slot)
    ascending = {stage: sorted(ops) for stage, ops in reads.items()}
    return Wiring(ascending, consumers, slots, stage_of, dict(values), dict(gradients))


def _readers(program: Program) -> list[list[int]]:
    """Ops that read each op's value, ascending."""
    position = {node: op for op, node in enumerate(program.nodes)}
    readers: list[set[int]] = [set() for _ in program.nodes]
    for op, node in enumerate(program.nodes):
        for source in node_inputs(node):
            if source in position:
                readers[position[source]].add(op)
    return [sorted(ops) for ops in readers]


def _slots_of(op: int, consumers: list[int], stage_of: list[int], members: dict[Slot, list[int]]) -> list[Slot]:
    """Slots for consumers given last to first: the leading run in one stage shares a slot, the others have their own."""
    slots: list[Slot] = []
    in_lead = True
    for consumer in consumers:
        in_lead = in_lead and stage_of[consumer] == stage_of[consumers[0]]
        if slots and in_lead:
            members[slots[0]].append(consumer)
        else:
            slots.append(Slot(op, consumer))
            members[slots[-1]] = [consumer]
    return slots
