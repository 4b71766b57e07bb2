"""Runs one worker's part of a schedule: the training step as the worker lives it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..list_schedule import FORWARD
from ..schedule import Instruction, Schedule
from ..topology import Topology
from .batches import CapturedStep
from .clipping import clip_gradients
from .message import Layout
from .pace import Interval, Pace
from .segment import LOSS, Argument, Pass, Segment
from .state import State
from .transport import Expected, Transport
from .wiring import Slot, Wiring

Floats = NDArray[np.float64]


class OutOfMemory(RuntimeError):
    """A device's declared memory is exceeded; the message names the device and the ops."""


@dataclass(frozen=True, eq=False)
class Plan:
    """A schedule as one worker executes it.

    Attributes:
        schedule: the whole step.
        wiring: what crosses stages.
        segments: this worker's stages.
        forward_s: declared seconds of each stage's forward for a full microbatch (emulated devices).
        backward_s: the same for its backward.
        update_s: declared seconds of this worker's optimizer update.
        readers: how often each value is read on this device by other stages than its own, or sent.
        live_bytes: bytes that each stage holds from forward to backward.
        waiting_bytes: bytes that each stage's backward adds to gradients that wait here for another stage.
        working_bytes: bytes that this worker's device needs beside state and activations.
        messages: what this worker receives, by the sizes of the batch that it has been executed with.
    """

    schedule: Schedule
    wiring: Wiring
    segments: dict[int, Segment]
    forward_s: list[float]
    backward_s: list[float]
    update_s: float
    readers: dict[int, int]
    live_bytes: list[float]
    waiting_bytes: list[float]
    working_bytes: float
    messages: dict[Any, dict[int, list[Expected]]] = field(default_factory=dict)


@dataclass
class StepRecord:
    """What one worker saw of a step.

    Attributes:
        origin: when it began, a reading of `time.monotonic`.
        outputs: loss and metrics that it computed, by op and microbatch.
        grad_norm: norm of all workers' gradients, if they were clipped.
        instructions: what it did.
        intervals: when, in seconds since the step's origin.
        transfer_s: seconds its outgoing links were taken.
        first_messages: bytes of the first message from every worker, and seconds that it was on its way, see `FirstMessages`,
            `float64[2, d]`.
        peak_bytes: most memory held at once.
    """

    origin: float = 0.0
    outputs: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    grad_norm: float | None = None
    instructions: list[Instruction] = field(default_factory=list)
    intervals: list[Interval] = field(default_factory=list)
    transfer_s: float = 0.0
    first_messages: Floats = field(default_factory=lambda: np.empty((2, 0)))
    peak_bytes: float = 0.0


class Runner:
    """Executes plans on one worker.

    Args:
        captured: the captured model.
        topology: devices and links.
        rank: this worker, and its device.
        pace: how time passes on the device.
        transport: how messages travel.
        state: the tensors the worker owns.
    """

    def __init__(
        self,
        captured: CapturedStep,
        topology: Topology,
        rank: int,
        pace: Pace,
        transport: Transport,
        state: State,
    ):
        self.program = captured.program
        self.metrics = frozenset(captured.metrics.values())
        self.rank = rank
        self.name = topology.devices[rank].name
        self.capacity_bytes = topology.devices[rank].memory_bytes
        self.latency_s = topology.latency_s[rank]
        self.pace = pace
        self.transport = transport
        self.state = state
        self._segments: dict[Any, Segment] = {}

    def segments(self, schedule: Schedule, wiring: Wiring) -> dict[int, Segment]:
        """This worker's stages; those that a placement shares with the last one are kept."""
        stages = schedule.stages
        kept: dict[Any, Segment] = {}
        result = {}
        for stage in [s for s, device in enumerate(stages.device.tolist()) if device == self.rank]:
            ops = stages.ops[stages.op_start[stage] : stages.op_start[stage + 1]].tolist()
            key = wiring.signature(stage, ops)
            if key not in self._segments:
                self._segments[key] = Segment(self.program, wiring, stage, ops, self.pace.torch_device, self.metrics)
            result[stage] = kept[key] = self._segments[key]
        self._segments = kept
        return result

    def run(
        self,
        plan: Plan,
        micros: list[list[torch.Tensor]],
        origin: float,
        seed: int,
        *,
        scale: float = 1.0,
        update: bool = True,
        max_grad_norm: float | None = None,
    ) -> StepRecord:
        """One training step, or an evaluation where the program has no backward pass.

        Args:
            plan: what to do.
            micros: the batch's tensors for each microbatch.
            origin: start of the step, a reading of `time.monotonic`.
            seed: of the step's random numbers.
            scale: the loss is multiplied by it before it is differentiated.
            update: apply the gradients; else they are kept, and the next step's are added to them.
            max_grad_norm: clip all workers' gradients to this common norm before they are applied.
        """
        step = _Step(self, plan, micros, seed, scale)
        step.record.origin = origin
        program = plan.schedule.programs[self.rank]
        self.pace.start_step(origin)
        self.transport.start_step(step.incoming())
        for instruction in program:
            if instruction.kind != "update":
                step.execute(instruction)
        if update and max_grad_norm is not None:
            step.clip(max_grad_norm)
        for instruction in program:
            if instruction.kind == "update" and update:
                step.execute(instruction)
        self.transport.finish_step()
        step.record.intervals = self.pace.intervals()
        step.record.transfer_s = self.transport.transfer_s
        step.record.first_messages = self.transport.first_messages
        return step.record


class _Step:
    """The values, gradients and activations of one step in flight."""

    def __init__(self, runner: Runner, plan: Plan, micros: list[list[torch.Tensor]], seed: int, scale: float):
        self.runner = runner
        self.plan = plan
        self.program = runner.program
        self.device = runner.pace.torch_device
        self.bindings = [self.program.bindings(tensors) for tensors in micros]
        full, last = self.program.sizes(self.bindings[0]), self.program.sizes(self.bindings[-1])
        self.sizes = [*([full] * (len(micros) - 1)), last]
        self.batch = [[tensor.to(self.device) for tensor in tensors] for tensors in micros]
        sizes = plan.schedule.sizes
        self.weights = [size / sum(sizes) * scale for size in sizes]
        self.fraction = [size / sizes[0] for size in sizes]
        self.seed = seed
        self.values: list[dict[int, torch.Tensor]] = [{} for _ in sizes]
        self.grads: list[dict[Slot, torch.Tensor]] = [{} for _ in sizes]
        self.passes: dict[tuple[int, int], Pass] = {}
        self.readers_left = [dict(plan.readers) for _ in sizes]
        self.arrival = 0.0
        self.ready = 0.0
        self.state_bytes = float(runner.state.nbytes())
        self.live_bytes = plan.working_bytes
        self.record = StepRecord(peak_bytes=self.state_bytes)
        self._compute = {"forward": self._forward, "backward": self._backward, "update": self._update}

    def incoming(self) -> dict[int, list[Expected]]:
        """The messages this worker will receive from each other, in order."""
        key = tuple(tuple(bindings.values()) for bindings in self.bindings)
        if key not in self.plan.messages:
            arrivals = self.plan.schedule.incoming(self.runner.rank)
            self.plan.messages[key] = {
                source: [self._expected(*arrival) for arrival in of_source] for source, of_source in arrivals.items()
            }
        return self.plan.messages[key]

    def _expected(self, send: Instruction, acknowledges: int) -> Expected:
        ops = self._ops_of(send, self.runner.rank)
        bindings = self.bindings[send.micro]
        layouts = tuple(Layout(self.program.shape(op, bindings), self.program.dtype(op)) for op in ops)
        return Expected((send.direction, send.stage, send.micro), layouts, acknowledges)

    def _ops_of(self, message: Instruction, target: int) -> list[int]:
        if message.direction == FORWARD:
            return self.plan.wiring.values.get((message.stage, target), [])
        return [slot.op for slot in self.plan.wiring.gradients.get((message.stage, target), [])]

    def execute(self, instruction: Instruction) -> None:
        """Do one instruction."""
        if instruction.kind == "receive":
            self._receive(instruction)
        elif instruction.kind == "send":
            self._send(instruction)
        else:
            self.runner.pace.begin(self.arrival)
            self.arrival = 0.0
            seconds = self._compute[instruction.kind](instruction)
            self.ready = self.runner.pace.end(seconds)
            self.record.instructions.append(instruction)

    def _receive(self, message: Instruction) -> None:
        tensors, arrival = self.runner.transport.receive((message.direction, message.stage, message.micro))
        self.arrival = max(self.arrival, arrival)
        if message.direction == FORWARD:
            ops = self.plan.wiring.values[message.stage, self.runner.rank]
            self.values[message.micro].update(zip(ops, tensors, strict=True))
        else:
            slots = self.plan.wiring.gradients[message.stage, self.runner.rank]
            self.grads[message.micro].update(zip(slots, tensors, strict=True))

    def _send(self, message: Instruction) -> None:
        micro, key = message.micro, (message.stage, message.peer)
        if message.direction == FORWARD:
            ops = self.plan.wiring.values.get(key, [])
            tensors = [self.values[micro][op] for op in ops]
            self.runner.transport.send(message.peer, tensors, self.ready)
            for op in ops:
                self._read(micro, op)
        else:
            tensors = [self.grads[micro].pop(slot) for slot in self.plan.wiring.gradients.get(key, [])]
            self.runner.transport.send(message.peer, tensors, self.ready)

    def _read(self, micro: int, op: int) -> None:
        """One reader fewer; the value is dropped after its last."""
        self.readers_left[micro][op] -= 1
        if self.readers_left[micro][op] == 0:
            del self.values[micro][op]

    def _forward(self, instruction: Instruction) -> float:
        stage, micro = instruction.stage, instruction.micro
        segment = self.plan.segments[stage]
        self._hold(self.plan.live_bytes[stage], stage, micro)
        values, kept = segment.forward(lambda argument: self._fetch(argument, micro))
        for op in segment.reads:
            self._read(micro, op)
        for op in values.keys() & self.runner.metrics:
            self.record.outputs[op, micro] = values[op]
        if self.program.output in values:
            loss = values[self.program.output]
            self.record.outputs[self.program.output, micro] = loss
            self.grads[micro][Slot(self.program.output, LOSS)] = torch.full_like(loss, self.weights[micro])
        self.values[micro].update({op: v for op, v in values.items() if self.readers_left[micro].get(op)})
        if self.plan.schedule.stages.has_backward[stage]:
            self.passes[stage, micro] = kept
        else:
            self._hold(-self.plan.live_bytes[stage], stage, micro)
        return self.plan.forward_s[stage] * self.fraction[micro]

    def _hold(self, nbytes: float, stage: int, micro: int) -> None:
        """From now on so many bytes more, or fewer, are held for a full microbatch."""
        self.live_bytes += nbytes * self.fraction[micro]
        total = self.state_bytes + self.live_bytes
        self.record.peak_bytes = max(self.record.peak_bytes, total)
        if total > self.runner.capacity_bytes:
            ops = [self.program.graph.names[op] for op in self.plan.segments[stage].ops]
            raise OutOfMemory(
                f"{self.runner.name}: {total / 2**20:.1f} MiB needed for microbatch {micro} of ops {ops[0]}…{ops[-1]}, "
                f"{self.runner.capacity_bytes / 2**20:.1f} MiB there"
            )

    def _fetch(self, argument: Argument, micro: int) -> Any:
        kind, key = argument
        if kind == "leaf":
            return self.values[micro][key.op]
        if kind == "value":
            return self.values[micro][key]
        if kind == "batch":
            return self.batch[micro][key]
        if kind == "size":
            return self.sizes[micro][key]
        if kind == "seed":
            return self.seed * len(self.batch) + micro
        name = self.program.parameters.get(key) or self.program.buffers.get(key)
        if name is None:
            return self.program.constants[key].to(self.device)
        return self.runner.state.tensors[name]

    def _backward(self, instruction: Instruction) -> float:
        stage, micro = instruction.stage, instruction.micro
        segment = self.plan.segments[stage]
        mine = self.grads[micro]
        kept = self.passes.pop((stage, micro))
        grads = {slot: mine.pop(slot) for slot in list(kept.roots) if slot in mine}
        mine.update(segment.backward(kept, grads))
        self._hold(self.plan.waiting_bytes[stage] - self.plan.live_bytes[stage], stage, micro)
        return self.plan.backward_s[stage] * self.fraction[micro]

    def _update(self, instruction: Instruction) -> float:
        del instruction
        self.runner.state.update()
        return self.plan.update_s

    def clip(self, max_norm: float) -> None:
        """Clip the gradients of all workers; the update then waits for the last backward of all."""
        ready = self.ready + self.runner.latency_s
        norm, arrival = clip_gradients(self.runner.state, max_norm, ready.tolist())
        self.record.grad_norm = norm
        self.arrival = max(self.arrival, arrival)
