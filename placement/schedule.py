"""`Schedule`: for every device, the ordered list of instructions of one training step."""

from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .clock import SimulatedClock
from .list_schedule import BACKWARD, FORWARD
from .placement import Placement
from .stages import Stages


class Instruction(NamedTuple):
    """One thing a device does.

    Attributes:
        kind: `forward`, `backward`, `send`, `receive` or `update`.
        direction: `FORWARD` (activations) or `BACKWARD` (gradients).
        stage: the stage that computes; for a message, the one that sends it.
        micro: microbatch.
        peer: the other device of a message, -1 otherwise.
    """

    kind: str
    direction: int
    stage: int
    micro: int
    peer: int = -1


class Arrival(NamedTuple):
    """A message as its receiver sees it.

    Attributes:
        send: the sender's instruction.
        acknowledges: messages of the receiver's that the sender has taken in before.
    """

    send: Instruction
    acknowledges: int


@dataclass(frozen=True, eq=False)
class Schedule:
    """What every device does in one training step, in order.

    The order of instructions is all that is fixed; when each begins is found out by whoever runs or prices it. Messages
    between two devices are sent, and therefore arrive, in the sender's order.

    Attributes:
        placement: what it was made for.
        sizes: samples in each microbatch.
        stages: the placement's stages.
        programs: instructions of each device.
    """

    placement: Placement
    sizes: tuple[int, ...]
    stages: Stages
    programs: tuple[tuple[Instruction, ...], ...]

    def incoming(self, device: int) -> dict[int, list[Arrival]]:
        """For each device that sends to this one, its messages in order."""
        result = defaultdict(list)
        for source, program in enumerate(self.programs):
            taken_in = 0
            for instruction in program:
                if instruction.peer != device:
                    continue
                if instruction.kind == "receive":
                    taken_in += 1
                elif instruction.kind == "send":
                    result[source].append(Arrival(instruction, taken_in))
        return dict(result)


def make_schedule(clock: SimulatedClock, placement: Placement) -> Schedule:
    """The schedule of one training step under a placement, as the clock's list scheduler orders it."""
    stages, trace = clock.trace(placement.devices)
    sources = {FORWARD: _senders(stages.succ_start, stages.succ), BACKWARD: _senders(stages.grad_start, stages.grad)}
    programs: list[list[Instruction]] = [[] for _ in clock.topology.devices]
    received: set[tuple[int, int, int, int]] = set()
    shape = trace.order.shape
    started = np.argsort(trace.order, axis=None)
    for flat in started[np.count_nonzero(trace.order < 0) :]:
        stage, micro, direction = (int(i) for i in np.unravel_index(flat, shape))
        device = int(stages.device[stage])
        program = programs[device]
        for sender in sources[direction].get(stage, ()):
            peer = int(stages.device[sender])
            message = (direction, sender, micro, device)
            if peer != device and message not in received:
                received.add(message)
                program.append(Instruction("receive", direction, sender, micro, peer))
        program.append(Instruction("backward" if direction == BACKWARD else "forward", direction, stage, micro))
        for peer in _receivers(stages, stage, direction):
            program.append(Instruction("send", direction, stage, micro, peer))
    for program in programs:
        if program:
            program.append(Instruction("update", FORWARD, -1, -1))
    return Schedule(placement, clock.sizes, stages, tuple(tuple(program) for program in programs))


def _senders(start: np.ndarray, others: np.ndarray) -> dict[int, list[int]]:
    result = defaultdict(list)
    for stage in range(len(start) - 1):
        for other in others[start[stage] : start[stage + 1]]:
            result[int(other)].append(stage)
    return result


def _receivers(stages: Stages, stage: int, direction: int) -> list[int]:
    """Devices that get a message from a stage, in the order in which it is sent."""
    start, others = (stages.succ_start, stages.succ) if direction == FORWARD else (stages.grad_start, stages.grad)
    devices = stages.device[others[start[stage] : start[stage + 1]]]
    return [int(d) for d in dict.fromkeys(devices.tolist()) if d != stages.device[stage]]
