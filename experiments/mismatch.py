"""Problems on which the costs that are believed are wrong: the simulator that an agent has, and another that measures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..agent.beliefs import Beliefs
from ..placement.captured import capture_any
from ..placement.clock import SimulatedClock, StepReport
from ..placement.costs import Profile, make_costs, microbatch_sizes, roofline
from ..placement.graph import Graph, make_graph
from ..placement.placement import Placement
from ..placement.presets import preset
from ..placement.topology import Topology
from .zoo.example import build_example

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Rng = np.random.Generator
BRANCHES = "branches"
NOISE = 0.02
WRONG = 0.5


@dataclass(frozen=True)
class Case:
    """What is placed where.

    Attributes:
        model: a zoo model, or `branches` for a random graph.
        topology: a preset.
        batch_size: samples a step.
        image_size: pixels a side, for models of images.
        microbatches: parts that a batch is cut into.
    """

    model: str
    topology: str
    batch_size: int = 64
    image_size: int = 32
    microbatches: int = 8

    @property
    def name(self) -> str:
        """As tables have it."""
        return f"{self.model} on {self.topology}"


def believed_clock(case: Case, seed: int) -> SimulatedClock:
    """The simulator with costs as they are believed: the roofline's."""
    sizes = microbatch_sizes(case.batch_size, case.microbatches)
    graph = random_branches(np.random.default_rng(seed)) if case.model == BRANCHES else _captured(case, sizes[0])
    topology = preset(case.topology)
    return SimulatedClock(graph, topology, make_costs(graph, topology), sizes)


def _captured(case: Case, samples: int) -> Graph:
    example = build_example(case.model, samples, image_size=case.image_size, device="meta")
    return capture_any(example.step, (example.batch,), name=case.model, prefix="model.").graph


def random_branches(rng: Rng, blocks: int = 8) -> Graph:
    """Blocks of two to four parallel chains, joined after each."""
    edges, last, count = [], 0, 1
    for _ in range(blocks):
        ends = []
        for _ in range(int(rng.integers(2, 5))):
            previous = last
            for _ in range(int(rng.integers(2, 5))):
                edges.append((previous, count))
                previous, count = count, count + 1
            ends.append(previous)
        edges += [(end, count) for end in ends]
        last, count = count, count + 1
    work = 4e8 * rng.lognormal(0.0, 0.8, count)
    return make_graph(
        BRANCHES,
        edges,
        count,
        forward_flops=work,
        backward_flops=2 * work,
        output_bytes=3e5 * rng.lognormal(0.0, 0.6, count),
        saved_bytes=6e5 * rng.lognormal(0.0, 0.6, count),
        parameter_bytes=1e5 * rng.lognormal(0.0, 1.0, count),
    )


def make_beliefs(clock: SimulatedClock, profile: Profile | None = None) -> Beliefs:
    """What an agent believes that has this simulator and this profile (or the roofline's); it learns from single steps."""
    return Beliefs(clock.graph, clock.topology, profile or roofline(clock.graph), clock.sizes, window=1, grain=0.01)


def wrong_by(rng: Rng, shape: Sequence[int], wrong: float = WRONG) -> Floats:
    """Factors within `1 - wrong` and `1 + wrong`, their logarithms uniform."""
    return np.exp(rng.uniform(np.log(1 - wrong), np.log(1 + wrong), shape))


def true_clock(believed: SimulatedClock, rng: Rng) -> SimulatedClock:
    """The simulator with every op, every device and every link off by up to 50 %."""
    costs, devices = believed.costs, believed.topology.num_devices
    of_op = wrong_by(rng, (believed.graph.num_ops, 1))
    topology = slower_links(believed.topology, wrong_by(rng, (devices, devices)))
    return slower_devices(
        SimulatedClock(
            believed.graph,
            topology,
            replace(costs, forward_s=costs.forward_s * of_op, backward_s=costs.backward_s * of_op),
            believed.sizes,
        ),
        wrong_by(rng, (devices,)),
    )


def slower_links(topology: Topology, factors: Floats) -> Topology:
    """The same with latencies and times per byte multiplied by `factors[source, target]`."""
    links = []
    for link in topology.links:
        factor = float(factors[topology.index[link.source], topology.index[link.target]])
        links.append(
            replace(link, latency_s=link.latency_s * factor, bandwidth_bytes_per_s=link.bandwidth_bytes_per_s / factor)
        )
    return replace(topology, links=tuple(links))


def slower_devices(clock: SimulatedClock, factors: Floats) -> SimulatedClock:
    """The same simulator with the seconds of every device's ops multiplied by `factors`."""
    costs = clock.costs
    columns = {
        name: costs.on_devices(getattr(costs, name)) * factors for name in ("forward_s", "backward_s", "update_s")
    }
    changed = replace(costs, **columns, device_class=np.arange(len(factors)))
    return SimulatedClock(clock.graph, clock.topology, changed, clock.sizes)


class Stand(SimulatedClock):
    """A test stand: it has the believed costs, but what it answers is measured on the truth, with noise.

    Args:
        believed: what the agent knows.
        truth: what is measured.
        seed: of the noise.
        profile: op times that are believed; the roofline's by default.

    Attributes:
        measured: for each placement that was measured, in order, `(overflow bytes, measured seconds, true seconds)`.
    """

    def __init__(self, believed: SimulatedClock, truth: SimulatedClock, seed: int, profile: Profile | None = None):
        super().__init__(believed.graph, believed.topology, believed.costs, believed.sizes)
        self.profile = profile
        self.truth = truth
        self.measured: list[tuple[float, float, float]] = []
        self._rng = np.random.default_rng(seed)

    def beliefs(self) -> Beliefs:
        """What an agent believes before it has measured anything."""
        return make_beliefs(self, self.profile)

    def evaluate(self, devices: Ints) -> tuple[float, float]:
        """Measured seconds of a step, and bytes by which the tightest device overflows."""
        true_s, overflow = self.truth.evaluate(devices)
        measured_s = true_s * float(self._rng.lognormal(0.0, NOISE))
        self.measured.append((overflow, measured_s, true_s))
        return measured_s, overflow

    def step(self, placement: Placement, timeline: bool = True) -> StepReport:
        """A measured step; every time in its report has an error of its own."""
        report = self.truth.step(placement, timeline)
        noisy = replace(
            report,
            step_time_s=report.step_time_s * float(self._rng.lognormal(0.0, NOISE)),
            busy_s=report.busy_s * self._rng.lognormal(0.0, NOISE, len(report.busy_s)),
            transfer_s=report.transfer_s * self._rng.lognormal(0.0, NOISE, len(report.busy_s)),
            timeline=tuple(
                span._replace(end_s=span.start_s + (span.end_s - span.start_s) * factor)
                for span, factor in zip(
                    report.timeline, self._rng.lognormal(0.0, NOISE, len(report.timeline)).tolist(), strict=True
                )
            ),
        )
        self.measured.append((float(report.overflow_bytes.max()), noisy.step_time_s, report.step_time_s))
        return noisy

    def best_so_far(self, count: int) -> Floats:
        """True seconds of the placement that measured best after each measurement, `float64[count]`; the last stays."""
        return np.array([self.measured[place][2] for place in self.best_places(count)])

    def best_places(self, count: int) -> list[int]:
        """Which of the placements measured best after each measurement, `count` of them; the last stays."""
        ends = range(1, min(count, len(self.measured)) + 1)
        places = [min(range(end), key=self.measured.__getitem__) for end in ends]
        return places + places[-1:] * (count - len(places))
