"""What instructions and messages cost a worker besides ops and links, as the executor runs them on this machine."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import root_scalar
from torch import nn

from ..clock import SimulatedClock
from ..placement import Placement, colocate
from ..topology import Topology
from .executor import Executor

_STAGES, _MICROBATCHES = 12, 4
_SAMPLES, _SMALL, _LARGE = 4, 16, 1 << 16
_WARM, _STEPS = 5, 25
_ENOUGH_S, _FEWEST = 3.0, 4
"""Over slow links few steps have to do: after so many seconds no more than these are waited for."""


class _Scale(nn.Module):
    """As little work as an op with a parameter can be for the bytes that it passes on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def probe_instructions(topology: Topology) -> Topology:
    """Measure `overhead_s`, `message_s` and `message_s_per_byte` of real devices; call it on every worker.

    Chains of tiny stages are run, and each figure is what makes the simulated step as long as the real one: the first for
    the chain on one device, the second for the chain with every stage on another device than the one before, the third for
    the same with larger values, in one microbatch: several would hide what the devices do behind links that are slow. All
    devices get the same.

    Args:
        topology: with measured links, no device emulated.
    """
    small = _Chain(topology, _SMALL, _MICROBATCHES)
    overhead_s = small.solve(small.together, lambda seconds: (seconds, 0.0, 0.0))
    if topology.num_devices == 1:
        return _with_costs(topology, overhead_s, 0.0, 0.0)
    message_s = small.solve(small.apart, lambda seconds: (overhead_s, seconds, 0.0))
    large = _Chain(topology, _LARGE, 1)
    per_byte = large.solve(large.apart, lambda seconds: (overhead_s, message_s, seconds / (4 * _SAMPLES * _LARGE)))
    return _with_costs(topology, overhead_s, message_s, per_byte / (4 * _SAMPLES * _LARGE))


def _with_costs(topology: Topology, overhead_s: float, message_s: float, message_s_per_byte: float) -> Topology:
    costs = {"overhead_s": overhead_s, "message_s": message_s, "message_s_per_byte": message_s_per_byte}
    return replace(topology, devices=tuple(replace(device, **costs) for device in topology.devices))


class _Chain:
    """A chain of stages that pass on `width` numbers a sample, on the executor and in the simulator."""

    def __init__(self, topology: Topology, width: int, microbatches: int):
        self.topology = topology
        self.microbatches = microbatches
        model = nn.Sequential(*(_Scale() for _ in range(_STAGES)))
        batch = torch.zeros(_SAMPLES * microbatches, width)
        self.batch = batch, batch.clone()
        self.executor = Executor(
            model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
            loss_fn=nn.MSELoss(),
            example_batch=self.batch,
            topology=_with_costs(topology, 0.0, 0.0, 0.0),
            microbatches=microbatches,
        )
        graph = self.executor.graph
        stage = np.minimum(np.arange(graph.num_ops), _STAGES - 1)
        self.together = np.zeros(graph.num_ops, np.int64)
        self.apart = colocate(stage % topology.num_devices, graph)

    def solve(self, devices: NDArray[np.int64], costs: Callable[[float], tuple[float, float, float]]) -> float:
        """The seconds with which the simulated step takes as long as the measured one; 0 where it takes longer anyway."""
        measured = self._measure(devices)

        def excess(seconds: float) -> float:
            return self._predict(devices, *costs(seconds)) - measured

        return root_scalar(excess, bracket=(0.0, measured)).root if excess(0.0) < 0 < excess(measured) else 0.0

    def _measure(self, devices: NDArray[np.int64]) -> float:
        """Median step time of a placement, the same on every worker."""
        self.executor.apply(Placement(devices, self.microbatches))
        times: list[float] = []
        while len(times) < _WARM + _STEPS and (len(times) < _FEWEST or sum(times) < _ENOUGH_S):
            self.executor.step(self.batch)
            times.append(self.executor.report.step_time_s if self.executor.report else 0.0)
        return float(np.median(times[min(_WARM, len(times) // 2) :]))

    def _predict(self, devices: NDArray[np.int64], overhead_s: float, message_s: float, per_byte: float) -> float:
        clock = self.executor.clock()
        costs = replace(clock.costs, overhead_s=np.full(self.topology.num_devices, overhead_s))
        loaded = _with_costs(self.topology, overhead_s, message_s, per_byte)
        return SimulatedClock(clock.graph, loaded, costs, clock.sizes).step_time(devices)
