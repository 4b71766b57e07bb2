"""`MeasuredClock`: times placements by training under them."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ..clock import StepReport
from ..costs import Costs
from ..placement import Placement
from .executor import Executor
from .migration import MoveFailed

_STOP, _STEP = 0, 1


class MeasuredClock:
    """A clock whose every answer is real training: the placement is applied, and the next batches are trained on.

    Worker 0 calls `step` and at last `close`; the others call `serve`, which follows until then. A placement that would
    overflow a device's memory is not tried: its report is the simulator's. One that the workers could not move to is
    reported as overflowing; no step is trained for it.

    Args:
        executor: the run.
        batches: where the training goes on, the same on every worker.
        steps: training steps for each answer, of which the median counts.
        timeline: whether reports have the timeline of the last step.
    """

    def __init__(self, executor: Executor, batches: Iterator[Any], steps: int = 1, timeline: bool = False):
        self.executor = executor
        self.graph = executor.graph
        self.topology = executor.topology
        self.microbatches = executor.microbatches
        self.losses: list[float] = []
        self.shortest_s = float("inf")
        self._batches = batches
        self._steps, self._timeline = steps, timeline

    @property
    def costs(self) -> Costs:
        """What the profile says that ops cost on the devices."""
        return self.executor.clock().costs

    def step(self, placement: Placement) -> StepReport:
        """Train under `placement`; its report has the median step time.

        Raises:
            StopIteration: when there are no batches left.
        """
        predicted = self.executor.clock().step(placement)
        if not predicted.feasible:
            return predicted
        self._tell(_STEP)
        dist.broadcast(torch.from_numpy(placement.devices.copy()), src=0)
        return self._train(placement) or replace(predicted, peak_bytes=2 * predicted.capacity_bytes)

    def serve(self) -> None:
        """Follow worker 0 until it closes the clock."""
        while self._tell(_STOP) == _STEP:
            devices = torch.empty(self.graph.num_ops, dtype=torch.int64)
            dist.broadcast(devices, src=0)
            self._train(Placement(devices.numpy(), self.microbatches))

    def close(self) -> None:
        """Let the other workers go."""
        self._tell(_STOP)

    def _tell(self, order: int) -> int:
        message = torch.tensor([order])
        dist.broadcast(message, src=0)
        return int(message.item())

    def _train(self, placement: Placement) -> StepReport | None:
        if placement != self.executor.placement:
            try:
                self.executor.apply(placement)
            except MoveFailed:
                return None
        reports = []
        for _ in range(self._steps):
            self.losses.append(self.executor.step(next(self._batches), self._timeline))
            if self.executor.report is not None:
                reports.append(self.executor.report)
        median = float(np.median([report.step_time_s for report in reports]))
        self.shortest_s = min(self.shortest_s, median)
        return replace(reports[-1], step_time_s=median)
