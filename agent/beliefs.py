"""`Beliefs`: what the agent thinks of the devices, corrected by measured step times."""

from collections import deque

import numpy as np
from numpy.typing import NDArray

from ..placement.clock import SimulatedClock, StepReport
from ..placement.costs import Profile, make_costs
from ..placement.graph import Graph
from ..placement.placement import Placement
from ..placement.topology import Topology

# Measured-to-believed ratios are rounded to this, so that noise below it changes no decision.
GRAIN = 0.05


class Beliefs:
    """Device speeds as they appear from the busy seconds of measured steps.

    The costs of single ops come from the profile; how fast each device goes through them is read off every step: the ratio of
    the busy seconds that were measured to those that the simulator predicts for the same placement.

    Args:
        graph: the model.
        topology: devices with the speeds to start from.
        profile: op times on a device of speed 1.
        sizes: samples in each microbatch.
        optimizer_state: bytes of optimizer state per byte of parameter.
        window: steps that a ratio is the median of, and that a drift has to last.
    """

    def __init__(
        self,
        graph: Graph,
        topology: Topology,
        profile: Profile,
        sizes: tuple[int, ...],
        optimizer_state: float = 2.0,
        window: int = 3,
    ):
        self.graph = graph
        self.topology = topology
        self.profile = profile
        self.sizes = sizes
        self.optimizer_state = optimizer_state
        self.window = window
        self._ratios: deque[NDArray[np.float64]] = deque(maxlen=window)
        self._set_speed(topology.speed)

    def _set_speed(self, speed: NDArray[np.float64]) -> None:
        self.speed = speed
        believed = self.topology.with_speed(speed)
        costs = make_costs(self.graph, believed, self.profile, self.optimizer_state)
        self.clock = SimulatedClock(self.graph, believed, costs, self.sizes)
        self._predicted: tuple[Placement, StepReport] | None = None
        self._ratios.clear()

    def predict(self, placement: Placement) -> StepReport:
        """What a step under `placement` should look like."""
        if self._predicted is None or self._predicted[0] != placement:
            self._predicted = (placement, self.clock.step(placement))
        return self._predicted[1]

    def observe(self, placement: Placement, report: StepReport) -> None:
        """Take in one measured step."""
        predicted = self.predict(placement).busy_s
        ratio = np.ones(len(predicted))
        active = predicted > 1e-9
        ratio[active] = report.busy_s[active] / predicted[active]
        self._ratios.append(ratio)

    def forget(self) -> None:
        """Drop the steps seen so far; call it when the placement changes."""
        self._ratios.clear()

    @property
    def ratio(self) -> NDArray[np.float64]:
        """Median ratio of measured to believed busy seconds, `float64[d]`; 1 until a window is full."""
        if len(self._ratios) < self.window:
            return np.ones(self.topology.num_devices)
        return np.median(np.array(self._ratios), axis=0)

    def drift(self, tolerance: float) -> NDArray[np.int64]:
        """Devices whose pace was off by more than `tolerance` (0.2 is 20 %), the same way, in every step of the window."""
        if len(self._ratios) < self.window:
            return np.zeros(0, np.int64)
        off = np.log(np.maximum(np.array(self._ratios), 1e-3))
        slower, faster = off.min(axis=0) > np.log1p(tolerance), off.max(axis=0) < -np.log1p(tolerance)
        return np.flatnonzero(slower | faster)

    def correct(self) -> bool:
        """Believe the measured pace; returns whether that changed anything."""
        rounded = np.maximum(GRAIN, np.round(self.ratio / GRAIN) * GRAIN)
        if np.allclose(rounded, 1.0):
            return False
        self._set_speed(self.speed / rounded)
        return True
