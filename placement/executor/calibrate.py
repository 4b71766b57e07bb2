"""`calibrate`: how fast each real device runs a whole model, beside the sum of its ops timed alone."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..clock import SimulatedClock
from ..costs import make_costs
from ..placement import Placement
from .executor import Executor

_WARM, _STEPS = 2, 5


def calibrate(executor: Executor, batch: Any) -> SimulatedClock:
    """A clock whose device speeds are corrected by steps with the whole model on one device; call it on every worker.

    Ops in a row are not as fast as each of them alone: caches, allocation and Python take their part, and the machine has
    its moods. Every real device in turn trains on `batch` a few times, and its speed is divided by measured over predicted.
    What is declared of emulated devices stays, and so do devices that cannot hold the model. Afterwards the executor has
    its placement again.

    Args:
        executor: trains on during it, on real steps.
        batch: what to train on.
    """
    before = executor.placement
    ratio = np.ones(executor.topology.num_devices)
    for device, spec in enumerate(executor.topology.devices):
        alone = Placement(np.full(executor.graph.num_ops, device, np.int64), before.microbatches)
        report = executor.clock().step(alone)
        if spec.kind == "emulated" or not report.feasible:
            continue
        executor.apply(alone)
        ratio[device] = _median_step(executor, batch) / report.step_time_s
    executor.apply(before)
    return _with_speed(executor, executor.topology.speed / ratio)


def _median_step(executor: Executor, batch: Any) -> float:
    times = []
    for _ in range(_WARM + _STEPS):
        executor.step(batch)
        times.append(executor.report.step_time_s if executor.report else 0.0)
    return float(np.median(times[_WARM:]))


def _with_speed(executor: Executor, speed: NDArray[np.float64]) -> SimulatedClock:
    topology = executor.topology.with_speed(speed)
    costs = make_costs(executor.graph, topology, executor.profile, executor.optimizer_state_per_parameter)
    before = executor.clock()
    return SimulatedClock(before.graph, topology, costs, before.sizes, clipping=before.clipping)
