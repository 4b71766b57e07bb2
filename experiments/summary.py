"""The figures of a run, from what it wrote down."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..placement.clock import SimulatedClock
from ..placement.costs import Profile, make_costs, microbatch_sizes
from ..placement.graph import Graph
from ..placement.placement import Placement
from ..placement.topology import Topology
from .run_config import RunConfig
from .run_files import read_decisions, read_losses

FIRST_STEPS = 1
"""Steps at the very start that count for nothing: caches and allocators warm up."""


@dataclass(frozen=True)
class Act:
    """A stretch of the run between slow-downs.

    Attributes:
        name: what began it.
        before: step times until the agent's first move in it.
        after: step times since its last move in it; the same as `before` if it made none.
        told_s: simulated step time of what the agent would choose if told of the slow-down from the start.
    """

    name: str
    before: np.ndarray
    after: np.ndarray
    told_s: float | None = None


@dataclass(frozen=True, eq=False)
class Run:
    """A run folder, read."""

    config: RunConfig
    graph: Graph
    topology: Topology
    profile: Profile
    start: Placement
    end: Placement
    losses: list[dict[str, Any]]
    decisions: list[dict[str, Any]]

    @staticmethod
    def load(folder: Path) -> "Run":
        """Read a run folder, finished or not.

        Raises:
            SegueError: naming the file that is missing or malformed.
        """
        config = RunConfig.load(str(folder))
        graph = Graph.load(folder / "graph.json")
        topology = Topology.load(folder / "topology.yaml")
        start = Placement.load(folder / "placement-start.json", graph, topology)
        end = folder / "placement-end.json"
        return Run(
            config=config,
            graph=graph,
            topology=topology,
            profile=Profile.load(folder / "profile.json", graph),
            start=start,
            end=Placement.load(end, graph, topology) if end.exists() else start,
            losses=read_losses(folder),
            decisions=read_decisions(folder),
        )

    @property
    def moves(self) -> list[dict[str, Any]]:
        """Decisions that moved ops."""
        return [decision for decision in self.decisions if decision["action"] in ("move", "take back")]

    @property
    def times(self) -> np.ndarray:
        """Step time of every step, seconds."""
        return np.array([row["step_time_s"] for row in self.losses])

    def acts(self) -> list[Act]:
        """The run cut at its slow-downs."""
        times, last = self.times, len(self.losses)
        events = [event for event in sorted(self.config.slow, key=lambda e: e.step) if 0 < event.step < last]
        starts = [0, *(event.step for event in events)]
        names = ["the start", *(f"{e.device} became {e.factor:g}x slower" for e in events)]
        acts = []
        for name, begin, end in zip(names, starts, [*starts[1:], last], strict=True):
            moves = [m["step"] for m in self.moves if begin < m["step"] < end]
            first = moves[0] if moves else end
            warm = FIRST_STEPS if begin == 0 and first > FIRST_STEPS else begin
            before = times[warm:first]
            after = times[moves[-1] + 1 : end] if moves and moves[-1] + 1 < end else before
            acts.append(Act(name, before, after))
        return acts

    def clock(self, step: int) -> SimulatedClock:
        """The simulator of the run's devices as they are at a step."""
        speed = self.topology.speed.copy()
        for event in sorted(self.config.slow, key=lambda event: event.step):
            if event.step <= step:
                device = self.topology.index[event.device]
                speed[device] = self.topology.speed[device] / event.factor
        topology = self.topology.with_speed(speed)
        sizes = microbatch_sizes(self.config.batch_size, self.config.microbatches)
        return SimulatedClock(self.graph, topology, make_costs(self.graph, topology, self.profile), sizes)

    def runtime_without_agent_s(self) -> float:
        """Estimate of the runtime at the start's placement: its measured step time, scaled by the simulator where slowed."""
        measured = float(np.median(self.acts()[0].before))
        first = self.clock(0).step_time(self.start.devices)
        changes = sorted({0, *(event.step for event in self.config.slow)})
        total = 0.0
        for begin, end in zip(changes, [*changes[1:], len(self.losses)], strict=True):
            steps = max(0, min(end, len(self.losses)) - begin)
            total += steps * measured * self.clock(begin).step_time(self.start.devices) / first
        return total


def summarize(run: Run, overruns: int = 0, loop_s: float | None = None) -> dict[str, Any]:
    """The record that is written as `summary.json`; seconds, bytes and shares."""
    acts, times = run.acts(), run.times
    pauses = np.array([row["pause_s"] for row in run.losses])
    moved = sorted({op for move in run.moves for op in move["moves"]})
    runtime = float(times.sum() + pauses.sum())
    kinds = sorted({device.kind for device in run.topology.devices})
    without = run.runtime_without_agent_s()
    return {
        "format": "segue.summary/1",
        "device_kind": "+".join(kinds),
        "model": run.config.model,
        "data": run.config.data,
        "agent": run.config.agent,
        "start": run.config.start,
        "steps": len(run.losses),
        "step_time_start_s": _median(acts[0].before),
        "step_time_after_first_s": _median(acts[0].after),
        "step_time_end_s": _median(acts[-1].after),
        "acts": [
            {"name": a.name, "before_s": quartiles(a.before), "after_s": quartiles(a.after), "told_s": a.told_s}
            for a in acts
        ],
        "runtime_s": runtime,
        "loop_s": loop_s if loop_s is not None else runtime,
        "runtime_without_agent_estimate_s": without,
        "runtime_saved_estimate": 1.0 - runtime / without,
        "ops_total": run.graph.num_ops,
        "ops_moved_share": len(moved) / run.graph.num_ops,
        "bytes_moved": float(sum(move["bytes_moved"] for move in run.moves)),
        "pause_s_total": float(pauses.sum()),
        "moves": len(run.moves),
        "moves_taken_back": sum(move["action"] == "take back" for move in run.moves),
        "loss_first": run.losses[0]["loss"],
        "loss_last": run.losses[-1]["loss"],
        "busy_share_start": _busy_share(run, 0, len(acts[0].before) + FIRST_STEPS),
        "busy_share_end": _busy_share(run, len(run.losses) - len(acts[-1].after), len(run.losses)),
        "device_s": runtime * run.topology.num_devices,
        "idle_device_s": runtime * run.topology.num_devices - sum(sum(row["device_busy_s"]) for row in run.losses),
        "overruns": overruns,
        "warnings": [row["why"] for row in run.decisions if row["action"] == "warn"],
    }


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else float("nan")


def quartiles(values: np.ndarray) -> list[float]:
    """First quartile, median, third quartile."""
    return [float(q) for q in np.percentile(values, [25, 50, 75])] if len(values) else []


def _busy_share(run: Run, begin: int, end: int) -> dict[str, float]:
    """Share of the step that each device computes, over a stretch of steps."""
    rows = run.losses[begin:end] or run.losses
    busy = np.array([row["device_busy_s"] for row in rows]) / np.array([[row["step_time_s"]] for row in rows])
    return {d.name: round(float(b), 4) for d, b in zip(run.topology.devices, busy.mean(axis=0), strict=True)}
