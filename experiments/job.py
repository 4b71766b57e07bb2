"""The training run as each worker lives it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from ..agent.controller import ControllerConfig, Decision
from ..agent.pilot import Pilot
from ..agent.proposer import Request, answer
from ..placement.errors import SegueError
from ..placement.executor import Checkpoint, CheckpointFailed, Executor, load_checkpoint, probe, save_checkpoint
from ..placement.graph import Graph
from ..placement.placement import Placement, colocate
from ..placement.planners import plan
from ..placement.topology import Topology
from .approval import read_answer
from .data import ImageData, batches, load_data
from .deadline import Deadline
from .models import build_model, load_user_model
from .run_config import RunConfig
from .run_files import CHECKPOINTS, STOP, RunFiles
from .tensorboard import Board
from .trace import write_traces
from .watching import Watching

ASKED, TIME_UP = "asked", "time is up"
SETTLED = 2
"""Steps after a change of placement or pace until the timeline is looked at."""


def make_model(config: RunConfig, data: ImageData) -> nn.Module:
    """The run's model, with the same weights on every worker."""
    torch.manual_seed(config.seed)
    if ".py:" in config.model:
        return load_user_model(config.model)[0].train()
    return build_model(config.model, config.image_size, data.channels, data.classes, config.seed).train()


def make_optimizer(config: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW over all parameters."""
    return torch.optim.AdamW(model.parameters(), lr=config.learning_rate)


def run_batches(config: RunConfig, data: ImageData, first_step: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The run's batches from a step on, the same on every worker and after a resume."""
    return batches(data, config.batch_size, config.seed, config.steps, first_step)


@dataclass
class Outcome:
    """What worker 0 reports of a finished run, or of one that was stopped, and why."""

    steps: int
    stopped: str
    decisions: list[dict[str, Any]]
    overruns: int
    loop_s: float


def train(config: RunConfig, here: Topology, resume: bool, ends_at: float) -> Outcome:
    """Train to the end, until a stop is asked for, or as long as there is time; called on every worker.

    Args:
        config: the run.
        here: those of its devices that there are.
        resume: go on from its last checkpoint.
        ends_at: when everything has to be saved, a reading of `time.time`, or infinity.

    Raises:
        SegueError: for bad input found on the way, the same on every worker.
    """
    job = _Job(config, here, resume, ends_at)
    try:
        return job.run()
    finally:
        job.close()


class _Job:
    """The run's state on one worker."""

    def __init__(self, config: RunConfig, here: Topology, resume: bool, ends_at: float):
        self.config = config
        self.deadline = Deadline(ends_at)
        self.folder = Path(config.run_dir)
        self.rank = dist.get_rank()
        self.files: RunFiles | None = None
        self.pilot: Pilot | None = None
        self.watching: Watching | None = None
        self.data = load_data(config.data, config.image_size)
        self.topology = probe(here)
        self.all_devices = Topology.load(self.folder / "topology.yaml") if resume else self.topology
        self.executor = self._executor(resume)
        saved = load_checkpoint(self.executor, self.folder / CHECKPOINTS) if resume else None
        self.first_step = self.executor.steps
        moved = None
        if saved is None:
            self.executor.apply(self._start(self.executor.graph))
        else:
            moved = self._go_on(saved)
        self._slow_down(range(self.first_step))
        if self.rank == 0:
            self._open(resume)
        if moved is not None:
            self._decided(moved)
        if config.agent:
            settings = ControllerConfig(evaluations=config.evaluations, seed=config.seed, policy_path=config.policy)
            self.pilot = Pilot(
                self.executor, config.steps, settings, self._decided, self._approve if config.approve else None
            )
        if not resume:
            self._checkpoint()

    def _executor(self, resume: bool) -> Executor:
        config = self.config
        model = make_model(config, self.data)
        profile = self.folder / "profile.json" if resume else config.profile
        return Executor(
            model,
            optimizer=make_optimizer(config, model),
            loss_fn=nn.CrossEntropyLoss(),
            example_batch=next(run_batches(config, self.data)),
            topology=self.topology,
            microbatches=config.microbatches,
            profile=profile or None,
            seed=config.seed,
        )

    def _go_on(self, saved: Checkpoint) -> Decision | None:
        """Place the ops as they were; where the devices are others, as the policy decides, which is returned."""
        before, executor = saved.extra["devices"], self.executor
        names = [device.name for device in self.topology.devices]
        if before == names and saved.placement is not None:
            executor.apply(saved.placement)
            return None
        devices = executor.placement.devices
        if self.rank == 0:
            devices = self._replan(np.array(saved.extra["placement"]), before, names)
        executor.apply(Placement(devices, self.config.microbatches))
        where = zip(executor.graph.names, saved.extra["placement"], executor.placement.devices.tolist(), strict=True)
        moves = {op: [before[old], names[new]] for op, old, new in where if before[old] != names[new]}
        why = f"the devices are now {', '.join(names)}, not {', '.join(before)}"
        return Decision(self.first_step, "move", why, ops_moved=len(moves), moves=moves)

    def _replan(self, devices: np.ndarray, before: list[str], names: list[str]) -> np.ndarray:
        """The policy's placement for other devices than before, from the nearest to the old one."""
        fastest = int(self.topology.speed.argmax())
        position = np.array([names.index(name) if name in names else fastest for name in before])
        executor, config = self.executor, self.config
        request = Request(
            clock=executor.clock(),
            start=Placement(colocate(position[devices], executor.graph), config.microbatches),
            move_seconds=executor.op_bytes * self.topology.seconds_per_byte.max(),
            pause_s=0.0,
            horizon_steps=max(1, config.steps - self.first_step),
            evaluations=config.evaluations,
            seed=config.seed,
            policy_path=config.policy,
        )
        return answer(request).placement.devices

    def _start(self, graph: Graph) -> Placement:
        """The placement to begin with, from a file or a planner, if it fits."""
        clock = self.executor.clock()
        name = self.config.start
        if Path(name).suffix == ".json":
            placement = Placement.load(name, graph, self.topology)
        else:
            box: list[Any] = [plan(name, clock, seed=self.config.seed).devices if self.rank == 0 else None]
            dist.broadcast_object_list(box, src=0)
            placement = Placement(box[0], self.config.microbatches)
        report = clock.step(placement)
        if not report.feasible:
            device = int(np.argmax(report.overflow_bytes))
            raise SegueError(
                f"--start {name}: device {self.topology.devices[device].name} would need "
                f"{report.peak_bytes[device] / 2**20:.1f} MiB of its {report.capacity_bytes[device] / 2**20:.1f} MiB; "
                "start from another placement, use more microbatches, or a smaller model"
            )
        return placement

    def _open(self, resume: bool) -> None:
        graph = self.executor.graph
        self.files = RunFiles(self.folder, self.first_step)
        if not resume:
            graph.save(self.folder / "graph.json")
            self.topology.save(self.folder / "topology.yaml")
            self.executor.profile.save(self.folder / "profile.json", graph)
            self._save_placement("placement-start.json")
        names = [device.name for device in self.topology.devices]
        board = Board(self.folder, names, self.first_step) if self.config.tensorboard else None
        self.watching = Watching(self.executor, self.files, board)

    def _decided(self, decision: Decision) -> None:
        if self.files is not None:
            self.files.decision(decision)

    def _approve(self, proposed: Decision) -> bool | None:
        return read_answer(self.folder, proposed.step)

    def _slow_down(self, steps: range | list[int]) -> None:
        for event in self.config.slow:
            if event.step in steps and event.device in self.topology.index:
                self.executor.slow(self.topology.index[event.device], event.factor)

    def run(self) -> Outcome:
        """The training loop."""
        config, executor = self.config, self.executor
        begin, stopped, pause = time.monotonic(), "", 0.0
        bar = tqdm(total=config.steps, initial=self.first_step, unit="step", disable=self.rank != 0, dynamic_ncols=True)
        step = self.first_step
        self.deadline.begin()
        look = {SETTLED, step + SETTLED, *(event.step + SETTLED for event in config.slow)}
        for step, batch in enumerate(run_batches(config, self.data, self.first_step), self.first_step):
            self._slow_down([step])
            timeline = step in look or step in config.trace or step == config.steps - 1
            loss = executor.step(batch, timeline=timeline)
            self._show(step, loss)
            if self.files is not None:
                self.files.step(step, loss, self._report().step_time_s, pause, self._busy())
            pause = self._move(step + 1, look)
            bar.update()
            bar.set_postfix_str(f"loss {loss:.4f}, {self._report().step_time_s * 1e3:.0f} ms/step")
            self.deadline.step_done()
            self._look_ahead(step + 1)
            stopped = self._why_stop(step + 1)
            if stopped:
                break
            if (step + 1) % config.checkpoint_every == 0:
                self._checkpoint()
        bar.close()
        done = step + 1
        self._checkpoint()
        if self.rank == 0:
            self._save_placement("placement-end.json")
        log = [decision.to_record() for decision in self.pilot.log] if self.pilot else []
        return Outcome(done, stopped, log, executor.overruns, time.monotonic() - begin)

    def _move(self, next_step: int, look: set[int]) -> float:
        """Let the agent move ops; returns the pause that it took."""
        moved = self.pilot.after_step() if self.pilot is not None else None
        if self.pilot is None or moved is None:
            return 0.0
        look.add(next_step + SETTLED)
        if self.rank == 0:
            self._save_placement(f"placement-step-{next_step:05d}.json", self.pilot.log[-1].predicted_after_s)
        return moved.pause_s

    def _why_stop(self, done: int) -> str:
        """Why to stop (worker 0 was asked to, or sees no time for another step), or nothing; the same on every worker."""
        reasons = ("", ASKED, TIME_UP)
        asked = self.rank == 0 and (self.folder / STOP).exists()
        why = ASKED if asked else TIME_UP if self.deadline.is_up and done < self.config.steps else ""
        number = torch.tensor(reasons.index(why))
        dist.broadcast(number, src=0)
        return reasons[int(number.item())]

    def _look_ahead(self, done: int) -> None:
        """Tell the agent how many steps there will be, and the person if they are fewer than the run's."""
        if self.watching is None:
            return
        if self.pilot is not None:
            self.pilot.total_steps = done + self.deadline.steps_left(self.config.steps - done)
        warning = self.deadline.warning(done, self.config.steps)
        if warning is not None:
            self.watching.warn(done, warning)

    def _busy(self) -> list[float]:
        """Busy seconds of all devices of the run; 0 where one is not there."""
        busy = dict(zip(self.topology.index, self._report().busy_s.tolist(), strict=True))
        return [busy.get(name, 0.0) for name in self.all_devices.index]

    def _report(self) -> Any:
        report = self.executor.report
        if report is None:
            raise RuntimeError("no step has been run")
        return report

    def _show(self, step: int, loss: float) -> None:
        """Traces, warnings and curves of a step."""
        if self.watching is None:
            return
        if step == SETTLED:
            self._write_trace("start")
        if step == self.config.steps - 1:
            self._write_trace("end")
        if step in self.config.trace:
            self._write_trace(f"step-{step:05d}")
        self.watching.step(step, loss, self._report())

    def _write_trace(self, when: str) -> None:
        predicted = self.executor.clock().step(self.executor.placement, timeline=True)
        report = self._report()
        ways = {"predicted": predicted, "run": report}
        timelines = {
            f"{way} ({step.source}, {step.hidden_share:.0%} of the transfer time hidden)": step.timeline
            for way, step in ways.items()
        }
        write_traces(self.folder / f"trace-{when}.json", timelines)

    def _save_placement(self, name: str, predicted_s: float | None = None) -> None:
        graph, placement = self.executor.graph, self.executor.placement
        position = np.array([self.all_devices.index[name] for name in self.topology.index])
        placement = Placement(position[placement.devices], placement.microbatches)
        placement.save(self.folder / name, graph, self.all_devices, predicted_step_time_s=predicted_s)

    def _checkpoint(self) -> None:
        """Save the run; if that fails it goes on, and the checkpoint before stays."""
        extra = {"devices": list(self.topology.index), "placement": self.executor.placement.devices.tolist()}
        begin = time.monotonic()
        try:
            save_checkpoint(self.executor, self.folder / CHECKPOINTS, extra)
        except CheckpointFailed as error:
            if self.watching is not None:
                self.watching.warn(self.executor.steps, f"no checkpoint: {error}")
        self.deadline.saved(time.monotonic() - begin)

    def close(self) -> None:
        if self.watching is not None:
            self.watching.close()
        if self.files is not None:
            self.files.close()
        if self.pilot is not None:
            self.pilot.close()
