"""`Executor`: trains a model on several devices, and moves its operators while it trains."""

import time
from collections.abc import Callable
from os import PathLike
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from ..clock import SimulatedClock, StepReport
from ..costs import Profile, part_sizes
from ..errors import SegueError
from ..placement import Placement, check_placement
from ..profile import measure_profile
from ..topology import Topology
from ..training_step import TrainingStep
from . import saving
from .batches import CapturedStep, batch_size, capture_step, cut
from .clipping import check_max_norm
from .direct_transport import make_transport
from .evaluation import follow_tensors
from .migration import MoveReport
from .moving import move
from .pace import make_pace
from .reporting import gather_spans, row_of, step_report, table
from .routine import Routine, estimate
from .runner import Runner, StepRecord
from .state import State


class Executor:
    """Trains a model with its operators spread over devices; every worker makes one and calls it in the same order.

    Worker `i` of `torch.distributed` runs device `i` of the topology. The loss of a step, and every parameter after it,
    are the same bits whatever the placement.

    A plain loop and this one:

        loss = loss_fn(model(inputs), target)        loss = executor.step((inputs, target))
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)     # Executor(…, max_grad_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()                             scheduler.step()

    The scheduler is any of `torch.optim.lr_scheduler` over the same optimizer object.

    Args:
        model: the model, the same on every worker. Modules that are in `eval()` mode stay so in training.
        optimizer: over `model.parameters()`; its hyperparameters are read again before every update, so schedulers work.
        loss_fn: `loss_fn(model(inputs), target)` for batches `(inputs, target)`; without it the model returns its loss.
            Either may return a dict with the entry `loss`, or a tuple that begins with the loss: other scalars in it
            are metrics.
        example_batch: a batch of the size of a training step's.
        topology: the devices, as many as there are workers.
        microbatches: parts that a batch is cut into.
        placement: where to start; by default everything on device 0.
        profile: op times of one microbatch on a device of speed 1, or a file of them; measured on worker 0 if not given.
        seed: of the random numbers that ops draw.
        max_grad_norm: before an update, gradients are scaled such that the norm of all of them together is at most this,
            as by `torch.nn.utils.clip_grad_norm_`; infinity only measures it. Every device then waits with its update
            for the last backward of all.
        autocast: run model and loss under `torch.autocast` in this type (`torch.bfloat16`), on the model's kind of device.

    Attributes:
        report: times and memory of the last step.
        metrics: the last step's or evaluation's metrics by name, means over the samples, on every worker.
        grad_norm: norm of the gradients of the last update before they were clipped; none without `max_grad_norm`.
        pending: whether there are gradients that no update has applied yet.
        steps: calls of `step` so far; ops draw other random numbers in each.
        placement: device of every op.

    Raises:
        SegueError: if the model cannot be captured, or workers and devices do not match.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: torch.optim.Optimizer,
        example_batch: Any,
        topology: Topology,
        loss_fn: Callable[..., Any] | None = None,
        microbatches: int = 1,
        placement: Placement | None = None,
        profile: Profile | str | PathLike | None = None,
        seed: int = 0,
        max_grad_norm: float | None = None,
        autocast: torch.dtype | None = None,
    ):
        self.rank = dist.get_rank()
        if dist.get_world_size() != topology.num_devices:
            raise SegueError(
                f"topology {topology.name}: {topology.num_devices} devices, but {dist.get_world_size()} workers; "
                "start one worker for each device"
            )
        check_max_norm(max_grad_norm)
        self.topology = topology
        self.microbatches = microbatches
        self.seed = seed
        self.model = model
        self.max_grad_norm = max_grad_norm
        self.batch_size = batch_size(example_batch)
        if microbatches < 1 or microbatches > self.batch_size:
            raise SegueError(f"microbatches must be between 1 and the batch size {self.batch_size}, got {microbatches}")
        self.micro_size = -(-self.batch_size // microbatches)
        self._model_and_loss = TrainingStep(model, loss_fn, autocast)
        captured = self._capture(cut(example_batch, self.micro_size).micro(0), training=True)
        self.program = captured.program
        self.graph = self.program.graph
        self._pace = make_pace(topology.devices[self.rank])
        self._transport = make_transport(topology, self.rank, self._pace.torch_device)
        self._state = State(self.program, model, optimizer, self._pace.torch_device)
        self.profile = self._profile(profile, captured.example)
        self._runner = self._make_runner(captured)
        clipping = max_grad_norm is not None
        self._training = Routine(captured, self._runner, topology, self.profile, clipping)
        self._routines: dict[bool, list[Routine]] = {True: [self._training], False: []}
        self._slow = np.ones(topology.num_devices)
        self._set_costs()
        self.placement = placement or Placement(np.zeros(self.graph.num_ops, np.int64), microbatches)
        check_placement(self.placement, self.graph, topology)
        for name in self._state.owned_by(self.rank, self.placement.devices.tolist()):
            self._state.take(name, self._state.initial[name])
        self._state.rebuild_optimizer({})
        self._place(self._training)
        self.report: StepReport | None = None
        self.metrics: dict[str, float] = {}
        self.grad_norm: float | None = None
        self.pending = False
        self.steps = 0
        self.overruns = 0

    def _capture(self, micro: Any, training: bool) -> CapturedStep:
        captured = capture_step(self._model_and_loss, micro, training)
        hashes: list[Any] = [None] * self.topology.num_devices
        dist.all_gather_object(hashes, captured.program.graph.hash)
        if len(set(hashes)) > 1:
            raise SegueError("model: the workers captured different graphs; build the same model on each of them")
        return captured

    def _make_runner(self, captured: CapturedStep) -> Runner:
        return Runner(captured, self.topology, self.rank, self._pace, self._transport, self._state)

    def _profile(self, given: Profile | str | PathLike | None, micro: list[torch.Tensor]) -> Profile:
        if given is not None:
            return given if isinstance(given, Profile) else Profile.load(given, self.graph)
        box: list[Any] = [None]
        if self.rank == 0:
            box[0] = measure_profile(self.program, self._state.initial, micro, self._pace.torch_device)
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def _set_costs(self) -> None:
        """Costs as they now are on the (possibly slowed) devices; emulated devices keep this pace."""
        self._slowed = self.topology.with_speed(self.topology.speed / self._slow)
        for routines in self._routines.values():
            for routine in routines:
                routine.set_costs(self._slowed, self.optimizer_state_per_parameter)

    def _place(self, routine: Routine) -> None:
        """Let a routine run where the parameters are."""
        placement = self.placement
        if routine.graph.hash != self.graph.hash:
            owners = {name: int(placement.devices[op]) for name, op in self._state.home.items()}
            placement = Placement(follow_tensors(routine.program, owners), self.microbatches)
        routine.place(placement)

    @property
    def optimizer_state_per_parameter(self) -> float:
        """Bytes of optimizer state per byte of parameter."""
        optimizer = self._state.template
        if isinstance(optimizer, torch.optim.SGD):
            return 1.0 if any(group["momentum"] for group in optimizer.param_groups) else 0.0
        return 2.0

    @property
    def op_bytes(self) -> np.ndarray:
        """Bytes of parameters, buffers and optimizer state that travel with each op, `float64[n]`."""
        return self.graph.parameter_bytes * (1 + self.optimizer_state_per_parameter) + self.graph.buffer_bytes

    @property
    def line_bytes(self) -> int:
        """Memory of this worker that messages from its host have lain in since the last move; no allocator counts it."""
        return self._transport.line_bytes

    def clock(self, sizes: list[int] | None = None) -> SimulatedClock:
        """The simulator of this run, as the executor's own schedules are made with it."""
        return self._training.clock(sizes or part_sizes(self.batch_size, self.micro_size))

    @property
    def source(self) -> str:
        """What this run's times are: `emulated` or `measured`."""
        return "emulated" if any(device.kind == "emulated" for device in self.topology.devices) else "measured"

    def slow(self, device: int, factor: float) -> None:
        """From now on an emulated device takes `factor` times its declared time; call it on every worker."""
        if self.topology.devices[device].kind != "emulated":
            raise SegueError(f"device {self.topology.devices[device].name}: only emulated devices can be slowed")
        self._slow[device] = factor
        self._set_costs()

    def step(self, batch: Any, timeline: bool = False, *, update: bool = True, scale: float = 1.0) -> float:
        """Train on one batch; returns its mean loss on every worker.

        Args:
            batch: structured like the example batch, the same on every worker. One of another size is cut into fewer or more
                parts. For one whose other dimensions differ (a longer text), the model is captured again, once for
                each shape.
            timeline: gather every worker's instructions into `report.timeline`.
            update: apply the gradients. Without, they are kept, and those of the next step are added to them.
            scale: what the loss is multiplied by before it is differentiated, not in what is returned. For a mean over
                `k` batches, `1 / k` in each of the `k` steps, of which the last one updates.

        Raises:
            SegueError: if the batch does not fit the model, or would be computed by other ops than the example batch.
        """
        routine, micros = self._routine(batch, training=True)
        sizes = part_sizes(batch_size(batch), self.micro_size)
        plan = routine.plan(sizes)
        record = routine.runner.run(
            plan,
            micros,
            self._origin(agreed=timeline),
            self.seed * 1_000_003 + self.steps,
            scale=scale,
            update=update,
            max_grad_norm=self.max_grad_norm,
        )
        self.steps += 1
        self.pending = not update
        self.grad_norm = record.grad_norm
        if update:
            self._state.tell_schedulers()
        loss, rows = self._gather(routine, record, sizes)
        device = self.topology.devices[self.rank].name
        spans = gather_spans(record, plan.schedule, self.graph, device) if timeline else ()
        ran = (routine.clock(sizes), routine.placement) if timeline else None
        self.report = step_report(rows, self.topology, self.source, spans, ran)
        return loss

    def eval(self, batch: Any) -> float:
        """The mean loss of a batch, on every worker, with the model in `eval()` mode; `metrics` has its metrics.

        Parameters stay where they are and compute there. Nothing changes: training goes on with the same bits as
        without the call. The model is captured once for evaluation, and again for each new shape of batches.

        Args:
            batch: of any size, the same on every worker.

        Raises:
            SegueError: if the model cannot be captured in `eval()` mode for such a batch.
        """
        routine, micros = self._routine(batch, training=False)
        sizes = part_sizes(batch_size(batch), self.micro_size)
        seed = self.seed * 1_000_003 + self.steps
        record = routine.runner.run(routine.plan(sizes), micros, self._origin(agreed=False), seed, update=False)
        return self._gather(routine, record, sizes)[0]

    def _routine(self, batch: Any, training: bool) -> tuple[Routine, list[list[torch.Tensor]]]:
        """How to run a batch, and the tensors of its microbatches."""
        parts = cut(batch, self.micro_size)
        refusal: SegueError | None = None
        for routine in self._routines[training]:
            try:
                return routine, routine.captured.tensors(parts)
            except SegueError as error:
                refusal = refusal or error
        try:
            routine = self._new_routine(parts.micro(0), training)
            tensors = routine.captured.tensors(parts)
        except SegueError as error:
            raise SegueError(f"{refusal}; and captured anew: {error}" if refusal else str(error)) from error
        self._routines[training].append(routine)
        return routine, tensors

    def _new_routine(self, micro: Any, training: bool) -> Routine:
        captured = self._capture(micro, training)
        graph = captured.program.graph
        if training and graph.hash != self.graph.hash:
            raise SegueError(
                f"model {graph.name}: a batch of this shape is computed by other ops than the example batch "
                f"({graph.num_ops}, not {self.graph.num_ops}), which have no placement"
            )
        profile = estimate(graph, self.profile, self.graph)
        clipping = training and self.max_grad_norm is not None
        routine = Routine(captured, self._make_runner(captured), self.topology, profile, clipping)
        routine.set_costs(self._slowed, self.optimizer_state_per_parameter)
        self._place(routine)
        return routine

    def _origin(self, agreed: bool) -> float:
        """The start of a step: when this worker is ready, or the last one, where all are to agree on it.

        Clocks of emulated devices begin there, so they do.
        """
        now = time.monotonic()
        if not agreed and self.source == "measured":
            return now
        moment = torch.tensor([now], dtype=torch.float64)
        dist.all_reduce(moment, dist.ReduceOp.MAX)
        return moment.item()

    def _gather(self, routine: Routine, record: StepRecord, sizes: list[int]) -> tuple[float, np.ndarray]:
        """Share losses, metrics and times; returns the loss and every worker's `row_of`."""
        outputs = routine.outputs(record.outputs, sizes)
        rows = table([float(self._pace.overruns), *outputs, *row_of(record)])
        self.overruns = int(rows[:, 0].sum())
        loss, *metrics = rows[:, 1 : 1 + len(outputs)].sum(0).tolist()
        self.metrics = dict(zip(routine.captured.metrics, metrics, strict=True))
        return loss, rows[:, 1 + len(outputs) :]

    def apply(self, placement: Placement) -> MoveReport:
        """Move to another placement between two steps; training goes on from the same numbers.

        Call it on every worker; where they were given different placements, worker 0's counts.

        Raises:
            SegueError: if the placement is not of this model and run, or gradients wait for an update.
            MoveFailed: if a transfer failed anywhere; every worker keeps the old placement.
        """
        check_placement(placement, self.graph, self.topology)
        if placement.microbatches != self.microbatches:
            raise SegueError(
                f"placement: microbatches: the run has {self.microbatches}, the placement {placement.microbatches}"
            )
        if self.pending:
            raise SegueError("apply: gradients wait for an update and do not move; call step(update=True) first")
        return move(self, placement)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The plain model's `state_dict()`, on the CPU, on every worker."""
        return saving.model_state(self._state, self.model)

    def optimizer_state_dict(self) -> dict[str, Any]:
        """The plain optimizer's `state_dict()`, on the CPU, on every worker."""
        return saving.optimizer_state(self._state, self.model)

    def load_state_dict(self, model_state: dict[str, Any], optimizer_state: dict[str, Any] | None = None) -> None:
        """Continue from the plain model's and optimizer's `state_dict()`; call it on every worker.

        Gradients that wait for an update are dropped.

        Raises:
            SegueError: if a tensor is missing or has another shape.
        """
        saving.load(self._state, self.model, model_state, optimizer_state)
        self.pending = False
