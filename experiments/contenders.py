"""`Contender`: one way to run a model, priced, as it stands in a comparison."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..placement.clock import SimulatedClock, StepReport
from ..placement.graph import Graph
from ..placement.max_load import MaxLoadClock
from ..placement.placement import Placement
from ..placement.planners import MANUAL, Plan
from ..placement.topology import Topology
from ..placement.workload_clock import WorkloadClock

Ints = NDArray[np.int64]
GIB, MIB = 2.0**30, 2.0**20

# What people run today without a planner's help counts as manual, and their own files do.
_MANUAL = {*MANUAL, "accelerate-balanced", "accelerate-sequential", "file"}


@dataclass(frozen=True, eq=False)
class Contender:
    """One way to run a model and what it is worth.

    Attributes:
        planner: who proposes it.
        kind: `manual`, `data-parallel`, `planner` or `agent`.
        value_s: what the objective says, in seconds; infinite where it is not available.
        overflow_bytes: bytes that do not fit on the tightest device.
        reasons: why it is not allowed, or not available; empty if it is feasible.
        source: `simulated`, `emulated` or `measured`; empty where it is not available.
        tightest: the device with the largest share of its memory taken, and that share.
        devices: device of every op, `int64[n]`, for what is a placement that the clock prices; `None` for the others.
        transfers: messages in a step, if they are counted.
        planning_s: wall-clock seconds that it took to find.
        evaluations: placements priced.
        bound_s: proven lower bound on the objective, if there is one.
    """

    planner: str
    kind: str
    value_s: float = float("inf")
    overflow_bytes: float = float("inf")
    reasons: tuple[str, ...] = ()
    source: str = ""
    tightest: tuple[str, float] = ("", 0.0)
    devices: Ints | None = None
    transfers: int | None = None
    planning_s: float = 0.0
    evaluations: int = 0
    bound_s: float | None = None

    @property
    def available(self) -> bool:
        """Whether there is a value at all."""
        return bool(self.source)

    @property
    def feasible(self) -> bool:
        """Whether it could be run as it is."""
        return self.available and not self.reasons

    @property
    def num_devices(self) -> int:
        """How many devices a placement uses; 0 for what is none."""
        return 0 if self.devices is None else len(np.unique(self.devices))

    @property
    def rank(self) -> tuple[bool, bool, float, float]:
        """Sorts what is feasible first, then what overflows least, then the fastest."""
        return not self.available, not self.feasible, self.overflow_bytes, self.value_s


def of_plan(clock: SimulatedClock, plan: Plan) -> Contender:
    """The contender that a planner's answer is."""
    devices = plan.devices
    report = clock.step(Placement(devices, clock.microbatches))
    reasons = clock.score(devices).reasons if isinstance(clock, WorkloadClock) else overflows(report, clock.topology)
    return Contender(
        planner=plan.planner,
        kind=kind(plan.planner),
        value_s=plan.value_s,
        overflow_bytes=plan.overflow_bytes,
        reasons=reasons,
        source=report.source,
        tightest=_tightest(report, clock.topology),
        devices=devices,
        transfers=_transfers(clock, devices),
        planning_s=plan.planning_s,
        evaluations=plan.evaluations,
        bound_s=plan.bound,
    )


def of_report(name: str, kind: str, report: StepReport, topology: Topology, planning_s: float) -> Contender:
    """The contender that is no placement of the clock's but has a report, such as data parallel training."""
    return Contender(
        planner=name,
        kind=kind,
        value_s=report.step_time_s,
        overflow_bytes=float(report.overflow_bytes.max()),
        reasons=overflows(report, topology),
        source=report.source,
        tightest=_tightest(report, topology),
        planning_s=planning_s,
        evaluations=1,
    )


def not_available(name: str, reason: str) -> Contender:
    """The contender that could not be had, and why."""
    return Contender(name, kind(name), reasons=(f"not available: {reason}",))


def kind(planner: str) -> str:
    """`manual`, `agent` or `planner`, by a planner's name."""
    if planner == "agent":
        return "agent"
    return "manual" if planner.partition(":")[0] in _MANUAL else "planner"


def overflows(report: StepReport, topology: Topology) -> tuple[str, ...]:
    """What overflows where: `dev2: 1.4 of 1.0 GiB` for every device that would need more memory than it has."""
    return tuple(
        f"{topology.devices[device].name}: {_of(report.peak_bytes[device], report.capacity_bytes[device])}"
        for device in np.flatnonzero(report.overflow_bytes)
    )


def _of(needed: float, there: float) -> str:
    unit, name = (GIB, "GiB") if there >= GIB else (MIB, "MiB")
    texts = f"{needed / unit:.1f}", f"{there / unit:.1f}"
    if texts[0] == texts[1]:
        texts = f"{needed / unit:.6g}", f"{there / unit:.6g}"
    return f"{texts[0]} of {texts[1]} {name}"


def _tightest(report: StepReport, topology: Topology) -> tuple[str, float]:
    shares = report.peak_bytes / report.capacity_bytes
    device = int(np.argmax(shares))
    return topology.devices[device].name, float(shares[device])


def _transfers(clock: SimulatedClock, devices: Ints) -> int:
    """Messages in a step: those of the schedule, or of one sample where the objective knows no schedule."""
    if isinstance(clock, WorkloadClock | MaxLoadClock):
        return messages(clock.graph, devices)
    return int((clock.trace(devices)[1].message_start >= 0).sum())


def messages(graph: Graph, devices: Ints) -> int:
    """Values that an op-to-device map sends, one for each op and other device that reads it."""
    source, target = graph.edges[:, 0], graph.edges[:, 1]
    crossing = devices[source] != devices[target]
    return len(set(zip(source[crossing].tolist(), devices[target[crossing]].tolist(), strict=True)))


def to_row(contender: Contender, best: bool, manual_s: float | None) -> dict[str, Any]:
    """The contender as a record: numbers and text only, `None` for what there is not.

    Args:
        contender: what to write.
        best: whether it is the winner.
        manual_s: value of the best manual configuration, in seconds.
    """
    value = contender.value_s if np.isfinite(contender.value_s) else None
    name, share = contender.tightest
    return {
        "planner": contender.planner,
        "kind": contender.kind,
        "value": value,
        "feasible": contender.feasible,
        "clock": contender.source or None,
        "planning_s": contender.planning_s,
        "evaluations": contender.evaluations,
        "best": best,
        "ratio": None if value is None or not manual_s else value / manual_s,
        "memory_device": name or None,
        "memory_share": share if contender.available else None,
        "transfers": contender.transfers,
        "bound": contender.bound_s,
        "reasons": list(contender.reasons),
    }
