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

from ..agent.beliefs import Beliefs
from ..agent.controller import Controller, ControllerConfig, Decision
from ..placement.costs import part_sizes
from ..placement.errors import SegueError
from ..placement.executor import Executor, probe
from ..placement.graph import Graph
from ..placement.placement import Placement
from ..placement.planners import plan
from .data import ImageData, batches, load_data
from .models import build_model, load_user_model
from .run_config import RunConfig
from .run_files import STOP, RunFiles, read_checkpoint
from .trace import write_traces

STAY, MOVE, STOP_HERE = 0, 1, 2


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
    """What worker 0 reports of a finished or stopped run."""

    steps: int
    stopped: bool
    decisions: list[dict[str, Any]]
    overruns: int
    loop_s: float


def train(config: RunConfig, resume: bool) -> Outcome:
    """Train to the end or until a stop is asked for; called on every worker.

    Raises:
        SegueError: for bad input found on the way, the same on every worker.
    """
    job = _Job(config, resume)
    try:
        return job.run()
    finally:
        job.close()


class _Job:
    """The run's state on one worker."""

    def __init__(self, config: RunConfig, resume: bool):
        self.config = config
        self.folder = Path(config.run_dir)
        self.rank = dist.get_rank()
        self.files: RunFiles | None = None
        self.controller: Controller | None = None
        self.data = load_data(config.data, config.image_size)
        self.topology = probe(config.devices())
        saved = read_checkpoint(self.folder) if resume else None
        self.first_step = saved["step"] if saved else 0
        self.executor = self._executor(saved)
        graph = self.executor.graph
        self.executor.apply(self._start(graph) if saved is None else self._saved_placement(saved))
        if saved is not None:
            self.executor.load_state_dict(saved["model"], saved["optimizer"])
            self.executor.steps = self.first_step
        self._slow_down(range(self.first_step))
        if self.rank == 0:
            self._open(graph, resume)
        if not resume:
            self._checkpoint(0)

    def _executor(self, saved: dict[str, Any] | None) -> Executor:
        config = self.config
        model = make_model(config, self.data)
        profile = self.folder / "profile.json" if saved else config.profile
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

    def _saved_placement(self, saved: dict[str, Any]) -> Placement:
        return Placement(np.array(saved["placement"], np.int64), self.config.microbatches)

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

    def _open(self, graph: Graph, resume: bool) -> None:
        self.files = RunFiles(self.folder, self.first_step)
        if not resume:
            graph.save(self.folder / "graph.json")
            self.topology.save(self.folder / "topology.yaml")
            self.executor.profile.save(self.folder / "profile.json", graph)
            self._save_placement("placement-start.json")
        if self.config.agent:
            self.controller = self._controller()

    def _controller(self) -> Controller:
        config, executor = self.config, self.executor
        sizes = tuple(part_sizes(executor.batch_size, executor.micro_size))
        beliefs = Beliefs(
            executor.graph, self.topology, executor.profile, sizes, executor.optimizer_state_per_parameter
        )
        settings = ControllerConfig(evaluations=config.evaluations, seed=config.seed, policy_path=config.policy)
        return Controller(beliefs, executor.placement, executor.op_bytes, config.steps, settings)

    def _slow_down(self, steps: range | list[int]) -> None:
        for event in self.config.slow:
            if event.step in steps:
                self.executor.slow(self.topology.index[event.device], event.factor)

    def run(self) -> Outcome:
        """The training loop."""
        config, executor = self.config, self.executor
        begin, stopped, pause = time.monotonic(), False, 0.0
        bar = tqdm(total=config.steps, initial=self.first_step, unit="step", disable=self.rank != 0, dynamic_ncols=True)
        step = self.first_step
        for step, batch in enumerate(run_batches(config, self.data, self.first_step), self.first_step):
            self._slow_down([step])
            timeline = step in (2, config.steps - 1)
            loss = executor.step(batch, timeline=timeline)
            if timeline and self.rank == 0:
                self._write_trace("start" if step == 2 else "end")
            order, pause = self._after(step, loss, pause)
            bar.update()
            bar.set_postfix_str(f"loss {loss:.4f}, {self._report().step_time_s * 1e3:.0f} ms/step")
            if order == STOP_HERE:
                stopped = True
                break
            if (step + 1) % config.checkpoint_every == 0:
                self._checkpoint(step + 1)
        bar.close()
        done = step + 1
        self._checkpoint(done)
        if self.rank == 0:
            self._save_placement("placement-end.json")
        log = [decision.to_record() for decision in self.controller.log] if self.controller else []
        return Outcome(done, stopped, log, executor.overruns, time.monotonic() - begin)

    def _report(self) -> Any:
        report = self.executor.report
        if report is None:
            raise RuntimeError("no step has been run")
        return report

    def _after(self, step: int, loss: float, pause_s: float) -> tuple[int, float]:
        """Write the step down, let the controller decide, and do what it says; returns the order and the pause it took."""
        order, decision = STAY, None
        if self.files is not None:
            self.files.step(step, loss, self._report(), pause_s)
            decision = self._decide(step)
            order = MOVE if decision else STAY
            if (self.folder / STOP).exists():
                order, decision = STOP_HERE, None
        message = torch.tensor([order])
        dist.broadcast(message, src=0)
        order = int(message.item())
        if order != MOVE:
            return order, 0.0
        target = torch.empty(self.executor.graph.num_ops, dtype=torch.int64)
        if self.controller is not None:
            target.copy_(torch.from_numpy(self.controller.placement.devices))
        dist.broadcast(target, src=0)
        moved = self.executor.apply(Placement(target.numpy(), self.config.microbatches))
        if self.controller is not None and decision is not None:
            self.controller.moved(moved.pause_s)
            self._save_placement(f"placement-step-{decision.step:05d}.json", decision.predicted_after_s)
        return order, moved.pause_s

    def _decide(self, step: int) -> Decision | None:
        if self.controller is None or self.files is None or step + 1 >= self.config.steps:
            return None
        known = len(self.controller.log)
        decision = self.controller.observe(step, self._report())
        for entry in self.controller.log[known:]:
            self.files.decision(entry)
        return decision

    def _write_trace(self, when: str) -> None:
        predicted = self.executor.clock().step(self.executor.placement, timeline=True)
        report = self._report()
        timelines = {"predicted (simulated)": predicted.timeline, f"run ({report.source})": report.timeline}
        write_traces(self.folder / f"trace-{when}.json", timelines)

    def _save_placement(self, name: str, predicted_s: float | None = None) -> None:
        executor = self.executor
        executor.placement.save(self.folder / name, executor.graph, self.topology, predicted_step_time_s=predicted_s)

    def _checkpoint(self, step: int) -> None:
        record = {
            "step": step,
            "placement": self.executor.placement.devices.tolist(),
            "model": self.executor.state_dict(),
            "optimizer": self.executor.optimizer_state_dict(),
        }
        if self.files is not None:
            self.files.checkpoint(record)

    def close(self) -> None:
        if self.files is not None:
            self.files.close()
        if self.controller is not None:
            self.controller.close()
