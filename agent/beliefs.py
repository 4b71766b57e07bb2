"""`Beliefs`: what the agent thinks of ops, devices and links, corrected by measured steps."""

from collections import deque
from copy import copy
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..placement.clock import SimulatedClock, StepReport
from ..placement.costs import Profile, make_costs
from ..placement.graph import Graph
from ..placement.placement import Placement
from ..placement.topology import Topology
from .corrections import Readings, expected, regress, surprise
from .message_times import believed_s, measured_s, message_noise, timed_links
from .readings import Factors, StepParts, counts_transfers, device_readings, link_readings, stage_readings, step_parts

# Ratios of measured to believed seconds are rounded to this, so that noise below it changes no decision.
GRAIN = 0.05
# A device or link has changed its pace if a reading is off by so many standard deviations, and by so much (a logarithm).
SURPRISE, CHANGE = 4.0, 0.2

Floats = NDArray[np.float64]


class Beliefs:
    """By what factors the costs of op groups, devices and links differ from what was assumed, with uncertainty.

    Op times come from the profile, links from the topology. Every measured step says how long each device was busy and each
    link taken (with a timeline: each stage), and a Bayesian regression finds the factors that explain all of them best
    (`corrections.py`). A device or link whose seconds fit nothing that was believed has changed its pace: its factor is
    learned anew, those of the ops are kept.

    Args:
        graph: the model.
        topology: devices and links to start from.
        profile: op times on a device of speed 1.
        sizes: samples in each microbatch.
        optimizer_state: bytes of optimizer state per byte of parameter.
        window: steps that a reading is the median of, and that a drift has to last.
        grain: ratios are rounded to it, and beliefs change by at least half of it.
        max_groups: groups of ops that have a factor each.
        clipping: whether the run clips gradients by their common norm.
    """

    def __init__(
        self,
        graph: Graph,
        topology: Topology,
        profile: Profile,
        sizes: tuple[int, ...],
        optimizer_state: float = 2.0,
        window: int = 3,
        grain: float = GRAIN,
        max_groups: int = 256,
        clipping: bool = False,
    ):
        self.graph = graph
        self.topology = topology
        self.profile = profile
        self.sizes = sizes
        self.optimizer_state = optimizer_state
        self.window = window
        self.grain = grain
        self.clipping = clipping
        self._factors = Factors(graph, topology, max_groups)
        self._first = self._clock(np.ones(len(self._factors.spread)))
        self._learned: list[Readings] = []
        self._steps: deque[StepReport] = deque(maxlen=window)
        self._placement: Placement | None = None
        self.posterior = regress(self._factors.spread, [])
        self._believe()

    def _believe(self) -> None:
        """Act on what has been learned."""
        values = self.posterior.factors()
        self._in_use = self._factors.in_use(values)
        self.clock = self._clock(values)
        self.speed = self.clock.topology.speed
        self._predicted: tuple[Placement, StepReport] | None = None
        self._steps.clear()

    def _clock(self, values: Floats) -> SimulatedClock:
        """The simulator with every cost multiplied by its factor."""
        factors, topology = self._factors, self.topology.with_speed(self.topology.speed / values[self._factors.device])
        links = []
        for link in topology.links:
            ends = topology.index[link.source], topology.index[link.target]
            slower = float(values[factors.network] * values[factors.link[ends]])
            links.append(
                replace(
                    link,
                    latency_s=link.latency_s * slower,
                    bandwidth_bytes_per_s=link.bandwidth_bytes_per_s / slower,
                )
            )
        topology = replace(topology, links=tuple(links))
        costs = make_costs(self.graph, topology, self.profile, self.optimizer_state)
        of_op = values[factors.group_of][:, None]
        costs = replace(costs, forward_s=costs.forward_s * of_op, backward_s=costs.backward_s * of_op)
        return SimulatedClock(self.graph, topology, costs, self.sizes, clipping=self.clipping)

    def sample(self, rng: np.random.Generator) -> SimulatedClock:
        """The simulator with costs as they might be, drawn from what is believed."""
        return self._clock(self.posterior.sample(rng))

    def without(self, device: int) -> "Beliefs":
        """The same beliefs when a device has gone; those here stay as they are."""
        rest = copy(self)
        rest.topology = self.topology.without([self.topology.devices[device].name])
        rest._factors = self._factors.without(device)
        rest._first = rest._clock(np.ones(len(rest._factors.spread)))
        rest._learned, rest._steps = list(self._learned), deque(maxlen=self.window)
        rest._believe()
        return rest

    def predict(self, placement: Placement) -> StepReport:
        """What a step under `placement` should look like."""
        if self._predicted is None or self._predicted[0] != placement:
            self._predicted = (placement, self.clock.step(placement))
        return self._predicted[1]

    def observe(self, placement: Placement, report: StepReport) -> None:
        """Take in one measured step."""
        if placement != self._placement:
            self._placement = placement
            self._steps.clear()
        self._steps.append(report)

    def forget(self) -> None:
        """Drop the steps seen since the last correction; call it when the placement changes."""
        self._steps.clear()

    def drift(self, tolerance: float) -> dict[str, float]:
        """What was off its believed pace by more than `tolerance` (0.2 is 20 %), the same way, in a full window's every step.

        Returns:
            Device name, `sending from` it, or a message between two -> median ratio of measured to believed seconds.
        """
        if self._placement is None or len(self._steps) < self.window:
            return {}
        believed, names = self.predict(self._placement), [device.name for device in self.topology.devices]
        taken = [(names, believed.busy_s, [report.busy_s for report in self._steps])]
        if all(counts_transfers(report) for report in self._steps):
            sending = [f"sending from {name}" for name in names]
            taken.append((sending, believed.transfer_s, [report.transfer_s for report in self._steps]))
        drifted = {
            name: float(np.exp(np.median(off)))
            for what, expected_s, seconds in taken
            for name, off in zip(what, _off(expected_s, np.array(seconds)).T, strict=True)
            if _all_beyond(off, np.log1p(tolerance))
        }
        return drifted | self._drifted_messages(tolerance)

    def _drifted_messages(self, tolerance: float) -> dict[str, float]:
        """The same for messages between real devices, where the difference is more than chance."""
        names, topology = [device.name for device in self.topology.devices], self.clock.topology
        drifted = {}
        for links in timed_links(self._steps, topology):
            expected_s = sum(believed_s(link, self._steps[-1], topology) for link in links)
            seconds = np.array([measured_s(links, report) for report in self._steps])
            off = np.log(np.maximum(seconds, 1e-9) / max(expected_s, 1e-9))
            if _all_beyond(off, max(float(np.log1p(tolerance)), SURPRISE * float(message_noise(seconds).max()))):
                source, target = (names[device] for device in links[0])
                name = f"a message from {source} to {target}" + " and back" * (len(links) > 1)
                drifted[name] = float(np.exp(np.median(off)))
        return drifted

    def correct(self) -> bool:
        """Learn from the steps of a full window; returns whether that changed anything."""
        if self._placement is None or len(self._steps) < self.window:
            return False
        placement, reports = self._placement, list(self._steps)
        parts = step_parts(self._first, placement)
        self._renew(parts, placement.devices, reports)
        timed = all(report.timeline for report in reports)
        compute = stage_readings if timed else device_readings
        self._learned += [
            compute(parts, placement.devices, reports, self._first, self._factors, self.grain),
            link_readings(parts, reports, self._first, self._factors, self.grain),
        ]
        self.posterior = regress(self._factors.spread, self._learned)
        believed = self._factors.in_use(self.posterior.factors())
        if np.abs(np.log(believed / self._in_use)).max() <= self.grain / 2:
            return False
        self._believe()
        return True

    def _renew(self, parts: StepParts, devices: NDArray[np.int64], reports: list[StepReport]) -> None:
        """Forget the factors of devices and links whose seconds are no longer what they were."""
        factors = self._factors
        busy = device_readings(parts, devices, reports, self._first, factors, 0.0)
        taken = link_readings(parts, reports, self._first, factors, 0.0)
        changed = busy.shared[self._changed(busy)], np.flatnonzero(taken.seconds[self._changed(taken)].any(axis=0))
        factors.renew_devices(changed[0])
        factors.renew_links(changed[1])
        if changed[0].size or changed[1].size:
            self.posterior = regress(factors.spread, self._learned)

    def _changed(self, readings: Readings) -> NDArray[np.bool_]:
        off = np.log(readings.measured / expected(readings, self.posterior.factors()))
        return (np.abs(surprise(readings, self.posterior)) > SURPRISE) & (np.abs(off) > CHANGE)


def _all_beyond(off: Floats, bound: float) -> bool:
    """Whether logarithms of ratios are all above the bound, or all below its negative."""
    return bool(off.min() > bound or off.max() < -bound)


def _off(expected_s: Floats, seconds: Floats) -> Floats:
    """Logarithms of measured over believed seconds, 0 where nothing is believed to happen, `float64[steps, d]`."""
    ratio = np.divide(seconds, expected_s, out=np.ones_like(seconds), where=expected_s > 1e-9)
    return np.log(np.maximum(ratio, 1e-3))
