"""`Transfer`: a message of one step, what computing it was hidden behind, and who waited for it.

A timeline says when every instruction ran. Which messages each one sends and needs follows from the placement, and how
long a message is on its way from its link, so that they need not be recorded.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .costs import fractions
from .errors import SegueError
from .list_schedule import BACKWARD, FORWARD
from .placement import Placement
from .span import Span
from .stages import Stages

if TYPE_CHECKING:
    from .clock import SimulatedClock

Floats = NDArray[np.float64]


class Transfer(NamedTuple):
    """One message between two devices; times in seconds from the step's start.

    Attributes:
        source: the device that sends.
        target: the device that receives.
        direction: `FORWARD` (values) or `BACKWARD` (gradients).
        stage: the stage that sends it, of `clock.stages(placement.devices)`.
        micro: microbatch.
        num_bytes: bytes.
        start_s: when it sets out.
        end_s: when it has arrived.
        hidden_s: seconds between the two in which the receiver computes.
        waited_s: seconds in which the receiver does nothing because of it.
    """

    source: int
    target: int
    direction: int
    stage: int
    micro: int
    num_bytes: float
    start_s: float
    end_s: float
    hidden_s: float
    waited_s: float

    @property
    def duration_s(self) -> float:
        """Seconds that it is on its way."""
        return self.end_s - self.start_s


class Ran(NamedTuple):
    """One instruction that ran, found again in a timeline."""

    device: int
    direction: int
    stage: int
    micro: int
    start_s: float
    end_s: float


def step_transfers(timeline: Sequence[Span], clock: "SimulatedClock", placement: Placement) -> list[Transfer]:
    """The messages of a step, in the order in which they set out.

    Links are taken as `clock.topology` describes them (declared, or as the probe found them): a message sets out when it is
    ready and every channel of its link is free. A device waits for a message when it has nothing else to do before the
    instruction that needs it; of several that one instruction needs, for the last.

    Args:
        timeline: the bars of a step under `placement`, of any clock.
        clock: its graph, topology and batch; what it says about times is not used.
        placement: what the step ran under.

    Raises:
        SegueError: if the timeline is of another placement.
    """
    stages = clock.stages(placement.devices)
    ran = find_instructions(timeline, clock, stages)
    sent = _travel(_departures(ran, stages, fractions(clock.sizes)), clock)
    computing = [_Computing(timeline, device.name) for device in clock.topology.devices]
    waited = _waits(ran, sent, stages)
    return [
        message._replace(
            hidden_s=computing[message.target].seconds(message.start_s, message.end_s), waited_s=waited.get(number, 0.0)
        )
        for number, message in enumerate(sent)
    ]


def hidden_share(transfers: Sequence[Transfer]) -> float:
    """Share of the transfer time in which the receiving device computes; 1 where nothing is transferred."""
    total = sum(transfer.duration_s for transfer in transfers)
    return sum(transfer.hidden_s for transfer in transfers) / total if total else 1.0


def find_instructions(timeline: Sequence[Span], clock: "SimulatedClock", stages: Stages) -> list[Ran]:
    """The forward and backward passes of a timeline, in the order in which they began.

    Raises:
        SegueError: if one of the stages has none.
    """
    spans = {(span.lane, span.name): span for span in timeline}
    found = []
    for stage, device in enumerate(stages.device.tolist()):
        lane, first = clock.topology.devices[device].name, clock.graph.names[stages.ops[stages.op_start[stage]]]
        for micro in range(clock.microbatches):
            for direction in (FORWARD, BACKWARD)[: 1 + int(stages.has_backward[stage])]:
                span = spans.get((lane, f"{'FB'[direction]}{micro} {first}"))
                if span is None:
                    raise SegueError(
                        f"timeline: device {lane}: no {('forward', 'backward')[direction]} of microbatch {micro} of op "
                        f"{first}; give the timeline of a step under this placement"
                    )
                found.append(Ran(device, direction, stage, micro, span.start_s, span.end_s))
    return sorted(found, key=lambda ran: (ran.start_s, ran.end_s, ran.stage))


def _departures(ran: Sequence[Ran], stages: Stages, fraction: Floats) -> list[Transfer]:
    """What each instruction sends when it ends, in that order."""
    sent = []
    for instruction in sorted(ran, key=lambda ran: ran.end_s):
        device, direction, stage, micro, _, end = instruction
        start, others, sizes = _outgoing(stages, direction)
        reached = {device}
        for j in range(start[stage], start[stage + 1]):
            target = int(stages.device[others[j]])
            if target not in reached:
                reached.add(target)
                size = float(sizes[j] * fraction[micro])
                sent.append(Transfer(device, target, direction, stage, micro, size, end, end, 0.0, 0.0))
    return sent


def _outgoing(stages: Stages, direction: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Where each stage's readers begin, the readers, and the bytes for them."""
    if direction == FORWARD:
        return stages.succ_start, stages.succ, stages.out_bytes
    return stages.grad_start, stages.grad, stages.grad_bytes


def _travel(ready: Sequence[Transfer], clock: "SimulatedClock") -> list[Transfer]:
    """The same messages with the times that the links give them."""
    topology = clock.topology
    start, channel_of = topology.channels
    free = np.zeros(int(channel_of.max(initial=-1)) + 1)
    result = []
    for message in ready:
        pair = message.source * topology.num_devices + message.target
        channels = channel_of[start[pair] : start[pair + 1]]
        begin = max(message.start_s, float(free[channels].max(initial=0.0)))
        per_byte = topology.seconds_per_byte[message.source, message.target]
        end = begin + float(topology.latency_s[message.source, message.target] + message.num_bytes * per_byte)
        free[channels] = end
        result.append(message._replace(start_s=begin, end_s=end))
    return result


def _waits(ran: Sequence[Ran], sent: Sequence[Transfer], stages: Stages) -> dict[int, float]:
    """Transfer number -> seconds for which its receiver has nothing else to do."""
    ready = {(r.direction, r.stage, r.micro): r.end_s for r in ran}
    number_of = {(m.direction, m.stage, m.micro, m.target): number for number, m in enumerate(sent)}
    needs = {direction: _needed(stages, direction) for direction in (FORWARD, BACKWARD)}
    last_end = dict.fromkeys((r.device for r in ran), 0.0)
    waited: dict[int, float] = {}
    for instruction in ran:
        free_since = last_end[instruction.device]
        last_end[instruction.device] = max(free_since, instruction.end_s)
        keys = [
            (instruction.direction, sender, instruction.micro, instruction.device)
            for sender in needs[instruction.direction].get(instruction.stage, ())
        ]
        numbers = [number_of[key] for key in keys if key in number_of]
        if not numbers:
            continue
        last = max(numbers, key=lambda number: sent[number].end_s)
        message = sent[last]
        if message.end_s > free_since:
            since = max(free_since, ready[message.direction, message.stage, message.micro])
            waited[last] = max(waited.get(last, 0.0), instruction.start_s - since)
    return waited


def _needed(stages: Stages, direction: int) -> dict[int, list[int]]:
    """Stages that each stage hears from."""
    start, others, _ = _outgoing(stages, direction)
    needed: dict[int, list[int]] = {}
    for sender, reader in _pairs(start, others):
        needed.setdefault(reader, []).append(sender)
    return needed


def _pairs(start: NDArray[np.int64], others: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    senders = np.repeat(np.arange(len(start) - 1), np.diff(start))
    return zip(senders.tolist(), others.tolist(), strict=True)


class _Computing:
    """How much a device has computed by any moment of a step."""

    def __init__(self, timeline: Sequence[Span], lane: str):
        bars = sorted((span.start_s, span.end_s) for span in timeline if span.lane == lane)
        self._moments = np.array(bars).reshape(-1)
        lengths = [end - start for start, end in bars]
        self._done = np.repeat(np.concatenate([[0.0], np.cumsum(lengths)]), 2)[1:-1]

    def seconds(self, start_s: float, end_s: float) -> float:
        """Seconds of computing between two moments."""
        if not len(self._moments):
            return 0.0
        before, after = np.interp([start_s, end_s], self._moments, self._done)
        return float(after - before)
