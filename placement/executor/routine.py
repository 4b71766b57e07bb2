"""`Routine`: a captured step of a run, with its costs and its schedules for the run's placement."""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ..clock import SimulatedClock
from ..costs import Profile, make_costs, roofline
from ..gpus import GPUS
from ..graph import Graph
from ..placement import Placement
from ..schedule import Schedule, make_schedule
from ..stage_costs import StageCosts
from ..stages import waiting_bytes
from ..topology import Topology
from .batches import CapturedStep
from .runner import Plan, Runner
from .wiring import wire


class Routine:
    """What a run does with batches of one form, training or evaluation: captured, priced, and scheduled as it comes.

    Args:
        captured: the model and its loss.
        runner: executes it on this worker.
        topology: the devices.
        profile: op times of one microbatch on a device of speed 1.
        clipping: whether gradients are clipped before an update.
    """

    def __init__(
        self, captured: CapturedStep, runner: Runner, topology: Topology, profile: Profile, clipping: bool = False
    ):
        self.captured = captured
        self.program = captured.program
        self.graph = captured.program.graph
        self.runner = runner
        self.topology = topology
        self.profile = profile
        self.clipping = clipping
        self._plans: dict[tuple[int, ...], Plan] = {}

    def set_costs(self, slowed: Topology, optimizer_state_per_parameter: float) -> None:
        """Take costs from the devices as they now are; plans are made anew."""
        self._costs = make_costs(self.graph, slowed, self.profile, optimizer_state_per_parameter)
        self._plans = {}

    def place(self, placement: Placement) -> None:
        """Run under this placement of its ops from now on."""
        self.placement = placement
        self._plans = {}

    def clock(self, sizes: list[int]) -> SimulatedClock:
        """The simulator that schedules are made with, for microbatches of these sizes."""
        return SimulatedClock(self.graph, self.topology, self._costs, sizes, clipping=self.clipping)

    def plan(self, sizes: list[int]) -> Plan:
        """What to do for microbatches of these sizes; every worker asks for it at once, worker 0 makes the schedule."""
        key = tuple(sizes)
        if key not in self._plans:
            self._plans[key] = self._make_plan(sizes)
        return self._plans[key]

    def _make_plan(self, sizes: list[int]) -> Plan:
        rank = self.runner.rank
        box: list[Any] = [None]
        if rank == 0:
            box[0] = self._schedule(sizes)
        dist.broadcast_object_list(box, src=0)
        if isinstance(box[0], str):
            raise RuntimeError(f"worker 0 could not make the schedule: {box[0]}")
        schedule, costs = box[0]
        # A smaller batch may have a first part that is smaller than a full one.
        ratio = sizes[0] / self.graph.batch_size
        wiring = wire(self.program, schedule.stages)
        return Plan(
            schedule=schedule,
            wiring=wiring,
            segments=self.runner.segments(schedule, wiring),
            forward_s=(costs.forward * ratio).tolist(),
            backward_s=(costs.backward * ratio).tolist(),
            update_s=float(costs.update[rank]),
            readers=wiring.local_readers(rank, schedule.stages),
            live_bytes=(costs.live_bytes * ratio).tolist(),
            waiting_bytes=(waiting_bytes(schedule.stages) * ratio).tolist(),
            working_bytes=float(costs.working_bytes[rank]),
        )

    def _schedule(self, sizes: list[int]) -> tuple[Schedule, StageCosts] | str:
        """The schedule and its stages' costs, or why there is none, which the other workers must hear too."""
        try:
            clock = self.clock(sizes)
            schedule = make_schedule(clock, self.placement)
            return schedule, clock.stage_costs(schedule.stages, self.placement.devices)
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def outputs(self, outputs: dict[tuple[int, int], torch.Tensor], sizes: list[int]) -> list[float]:
        """This worker's part of loss and metrics, each a mean over the samples of the microbatches."""
        weights = np.array(sizes) / sum(sizes)
        ops = [self.program.output, *self.captured.metrics.values()]
        return [
            sum(weights[micro] * outputs[op, micro].item() for micro in range(len(sizes)) if (op, micro) in outputs)
            for op in ops
        ]


def estimate(graph: Graph, profile: Profile, profiled: Graph) -> Profile:
    """Op times of another form of a profiled model: the roofline, times what ops of the same name took beyond theirs.

    Args:
        graph: the other form, in which the batch has other shapes or which is evaluated, not trained.
        profile: what was measured.
        profiled: the graph that it was measured on.
    """
    gpu = GPUS.get(profile.model)
    expected, reference = roofline(graph, gpu), roofline(profiled, gpu)

    def scaled(field: str) -> np.ndarray:
        measured, known, wanted = getattr(profile, field), getattr(reference, field), getattr(expected, field)
        overall = measured.sum() / known.sum() if known.sum() > 0 else 1.0
        ratio = [measured[op] / known[op] if op is not None and known[op] > 0 else overall for op in places]
        return wanted * np.array(ratio)

    places = [profiled.index.get(name) for name in graph.names]
    return Profile(scaled("forward_s"), scaled("backward_s"), scaled("update_s"), profile.source, profile.model)
