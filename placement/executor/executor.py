"""`Executor`: trains a model on several devices, and moves its operators while it trains."""

import time
from collections.abc import Callable
from os import PathLike
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.utils import _pytree as pytree

from ..capture import capture_program
from ..clock import SimulatedClock, Span, StepReport
from ..costs import Profile, fractions, make_costs, mean_profile, part_sizes
from ..errors import SegueError
from ..placement import Placement, check_placement
from ..profile import measure_profile
from ..schedule import Schedule, make_schedule
from ..topology import Topology
from ..training_step import TrainingStep
from .direct_transport import make_transport
from .migration import Migration, MoveReport
from .pace import make_pace
from .runner import Plan, Runner, StepRecord
from .state import State
from .wiring import wire


class Executor:
    """Trains a model with its operators spread over devices; every worker makes one and calls it in the same order.

    Worker `i` of `torch.distributed` runs device `i` of the topology. The loss of a step, and every parameter after it,
    are the same bits whatever the placement.

    Args:
        model: the model, the same on every worker.
        optimizer: over `model.parameters()`; its hyperparameters are read again before every update, so schedulers work.
        loss_fn: `loss_fn(model(inputs), target)` for batches `(inputs, target)`; without it the model returns its loss.
        example_batch: a batch of the size of a training step's.
        topology: the devices, as many as there are workers.
        microbatches: parts that a batch is cut into.
        placement: where to start; by default everything on device 0.
        profile: op times of one microbatch on a device of speed 1, or a file of them; measured on worker 0 if not given.
        seed: of the random numbers that ops draw.

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
        loss_fn: Callable[..., torch.Tensor] | None = None,
        microbatches: int = 1,
        placement: Placement | None = None,
        profile: Profile | str | PathLike | None = None,
        seed: int = 0,
    ):
        self.rank = dist.get_rank()
        if dist.get_world_size() != topology.num_devices:
            raise SegueError(
                f"topology {topology.name}: {topology.num_devices} devices, but {dist.get_world_size()} workers; "
                "start one worker for each device"
            )
        self.topology = topology
        self.microbatches = microbatches
        self.seed = seed
        self.steps = 0
        self.model = model
        self.program, self.batch_size, micro = _capture(model, loss_fn, example_batch, microbatches)
        self.graph = self.program.graph
        self._same_graph_everywhere()
        device = topology.devices[self.rank]
        self._pace = make_pace(device)
        self._transport = make_transport(topology, self.rank, self._pace.torch_device)
        self._state = State(self.program, model, optimizer, self._pace.torch_device)
        self.profile = self._profile(profile, micro)
        self._slow = np.ones(topology.num_devices)
        self._set_costs()
        self._runner = Runner(
            self.program,
            self.rank,
            self._pace,
            self._transport,
            self._state,
            device.memory_bytes,
            device.name,
        )
        self.placement = placement or Placement(np.zeros(self.graph.num_ops, np.int64), microbatches)
        check_placement(self.placement, self.graph, topology)
        for name in self._state.owned_by(self.rank, self.placement.devices.tolist()):
            self._state.take(name, self._state.initial[name])
        self._state.rebuild_optimizer({})
        self.report: StepReport | None = None
        self.overruns = 0

    def _same_graph_everywhere(self) -> None:
        hashes: list[Any] = [None] * self.topology.num_devices
        dist.all_gather_object(hashes, self.graph.hash)
        if len(set(hashes)) > 1:
            raise SegueError("model: the workers captured different graphs; build the same model on each of them")

    def _profile(self, given: Profile | str | PathLike | None, micro: list[torch.Tensor]) -> Profile:
        if given is not None:
            return given if isinstance(given, Profile) else Profile.load(given, self.graph)
        box: list[Any] = [None] * self.topology.num_devices
        # CPU devices share their machine's memory: all measure at once, since in a step they also work at once.
        together = all(device.kind == "cpu" for device in self.topology.devices)
        if together or self.rank == 0:
            box[self.rank] = measure_profile(self.program, self._state.initial, micro, self._pace.torch_device)
        dist.all_gather_object(box, box[self.rank])
        return mean_profile(box, self.topology.speed) if together else box[0]

    def _set_costs(self) -> None:
        """Costs as they now are on the (possibly slowed) devices; emulated devices keep this pace."""
        slowed = self.topology.with_speed(self.topology.speed / self._slow)
        self._costs = make_costs(self.graph, slowed, self.profile, self.optimizer_state_per_parameter)
        self._plans: dict[tuple[int, ...], Plan] = {}

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

    def clock(self, sizes: list[int] | None = None) -> SimulatedClock:
        """The simulator of this run, as the executor's own schedules are made with it."""
        sizes = sizes or part_sizes(self.batch_size, self.micro_size)
        return SimulatedClock(self.graph, self.topology, self._costs, sizes)

    @property
    def micro_size(self) -> int:
        """Samples in a full microbatch."""
        return self.graph.batch_size

    def slow(self, device: int, factor: float) -> None:
        """From now on an emulated device takes `factor` times its declared time; call it on every worker."""
        if self.topology.devices[device].kind != "emulated":
            raise SegueError(f"device {self.topology.devices[device].name}: only emulated devices can be slowed")
        self._slow[device] = factor
        self._set_costs()

    def step(self, batch: Any, timeline: bool = False) -> float:
        """Train on one batch; returns its mean loss on every worker.

        Args:
            batch: structured like the example batch, the same on every worker; a smaller one is cut into fewer parts.
            timeline: gather every worker's instructions into `report.timeline`.

        Raises:
            SegueError: if the batch does not fit the captured model.
        """
        tensors = self.program.flatten(batch)
        total = _batch_size(tensors)
        sizes = part_sizes(total, self.micro_size)
        plan = self._plan(sizes)
        micros = list(zip(*(_split(tensor, total, self.micro_size) for tensor in tensors), strict=True))
        origin = self._origin()
        seed = self.seed * 1_000_003 + self.steps
        record = self._runner.run(plan, [list(micro) for micro in micros], origin, seed)
        self.steps += 1
        return self._gather(record, plan, timeline)

    def _origin(self) -> float:
        """A common start: the moment at which the last worker is ready."""
        moment = torch.tensor([time.monotonic()], dtype=torch.float64)
        dist.all_reduce(moment, dist.ReduceOp.MAX)
        return moment.item()

    def _plan(self, sizes: list[int]) -> Plan:
        key = tuple(sizes)
        if key not in self._plans:
            box: list[Any] = [None]
            if self.rank == 0:
                clock = self.clock(sizes)
                schedule = make_schedule(clock, self.placement)
                box[0] = (schedule, clock.stage_costs(schedule.stages, self.placement.devices))
            dist.broadcast_object_list(box, src=0)
            schedule, costs = box[0]
            # A smaller batch may have a first part that is smaller than a full one.
            ratio = sizes[0] / self.micro_size
            wiring = wire(self.program, schedule.stages)
            self._plans[key] = Plan(
                schedule=schedule,
                wiring=wiring,
                segments=self._runner.segments(schedule, wiring),
                forward_s=(costs.forward * ratio).tolist(),
                backward_s=(costs.backward * ratio).tolist(),
                update_s=float(costs.update[self.rank]),
                live_bytes=(costs.live_bytes * ratio).tolist(),
            )
        return self._plans[key]

    def _gather(self, record: StepRecord, plan: Plan, timeline: bool) -> float:
        """Share losses and times; sets `report` and returns the loss."""
        weights = fractions(plan.schedule.sizes)
        weights = weights / weights.sum()
        loss = sum(weights[m] * value.item() for m, value in record.losses.items())
        end = max((interval.end_s for interval in record.intervals), default=0.0)
        busy = sum(interval.end_s - interval.start_s for interval in record.intervals)
        row = [loss, end, busy, record.transfer_s, record.peak_bytes, float(self._pace.overruns)]
        columns = self._table(row)
        self.overruns = int(columns[:, 5].sum())
        self.report = StepReport(
            step_time_s=float(columns[:, 1].max()),
            busy_s=columns[:, 2],
            transfer_s=columns[:, 3],
            peak_bytes=columns[:, 4],
            capacity_bytes=self.topology.memory_bytes,
            source=self.source,
            timeline=self._timeline(record, plan.schedule) if timeline else (),
        )
        return float(columns[:, 0].sum())

    def _table(self, row: list[float]) -> np.ndarray:
        """A row of numbers from every worker, `float64[d, len(row)]`."""
        rows = [torch.empty(len(row), dtype=torch.float64) for _ in self.topology.devices]
        dist.all_gather(rows, torch.tensor(row, dtype=torch.float64))
        return torch.stack(rows).numpy()

    @property
    def source(self) -> str:
        """What this run's times are: `emulated` or `measured`."""
        return "emulated" if any(d.kind == "emulated" for d in self.topology.devices) else "measured"

    def _timeline(self, record: StepRecord, schedule: Schedule) -> tuple[Span, ...]:
        stages, name = schedule.stages, self.topology.devices[self.rank].name
        spans = []
        for instruction, interval in zip(record.instructions, record.intervals, strict=True):
            if instruction.kind == "update":
                label = "update"
            else:
                op = self.graph.names[stages.ops[stages.op_start[instruction.stage]]]
                label = f"{'FB'[instruction.direction]}{instruction.micro} {op}"
            spans.append(Span(name, label, *interval))
        everyone: list[Any] = [None] * self.topology.num_devices
        dist.all_gather_object(everyone, spans)
        return tuple(sorted((s for part in everyone for s in part), key=lambda s: (s.start_s, s.lane, s.name)))

    def apply(self, placement: Placement) -> MoveReport:
        """Move to another placement between two steps; training goes on from the same numbers.

        Call it on every worker; where they were given different placements, worker 0's counts.

        Raises:
            SegueError: if the placement is not of this model and run.
            MoveFailed: if a transfer failed anywhere; every worker keeps the old placement.
        """
        check_placement(placement, self.graph, self.topology)
        if placement.microbatches != self.microbatches:
            raise SegueError(
                f"placement: microbatches: the run has {self.microbatches}, the placement {placement.microbatches}"
            )
        start = time.monotonic()
        agreed = torch.from_numpy(placement.devices.astype(np.int64))
        dist.broadcast(agreed, src=0)
        placement = Placement(agreed.numpy(), placement.microbatches)
        before, after = self.placement.devices.tolist(), placement.devices.tolist()
        migration = Migration(self._state, self._transport, self.topology, self.rank, before, after)
        sent = migration.run()
        ops = len(self.placement.moved(placement))
        self.placement = placement
        self._plans.clear()
        self._plan(part_sizes(self.batch_size, self.micro_size))
        table = self._table([time.monotonic() - start, sent])
        return MoveReport(ops, int(table[:, 1].sum()), float(table[:, 0].max()))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The plain model's `state_dict()`, on the CPU, on every worker."""
        tensors = self._collect({name: tensor.detach().cpu() for name, tensor in self._state.tensors.items()})
        return {key: tensors[self._state.names[key]] for key in self.model.state_dict()}

    def optimizer_state_dict(self) -> dict[str, Any]:
        """The plain optimizer's `state_dict()`, on the CPU, on every worker."""
        mine = {
            name: {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in entries.items()}
            for name, entries in self._state.optimizer_state().items()
        }
        states = self._collect(mine)
        record = self._state.template.state_dict()
        names = self._parameter_order()
        record["state"] = {i: states[name] for i, name in enumerate(names) if name in states}
        return record

    def _parameter_order(self) -> list[str]:
        """Parameter names in the order of the optimizer's groups, which numbers its state."""
        by_id = {id(p): self._state.names[n] for n, p in self.model.named_parameters(remove_duplicate=False)}
        return [by_id[id(p)] for group in self._state.template.param_groups for p in group["params"]]

    def _collect(self, mine: dict[str, Any]) -> dict[str, Any]:
        everyone: list[Any] = [None] * self.topology.num_devices
        dist.all_gather_object(everyone, mine)
        return {name: value for part in everyone for name, value in part.items()}

    def load_state_dict(self, model_state: dict[str, Any], optimizer_state: dict[str, Any] | None = None) -> None:
        """Continue from the plain model's and optimizer's `state_dict()`; call it on every worker.

        Raises:
            SegueError: if a tensor is missing or has another shape.
        """
        for key, tensor in self.model.state_dict().items():
            if key not in model_state or model_state[key].shape != tensor.shape:
                got = tuple(model_state[key].shape) if key in model_state else "none"
                raise SegueError(f"state_dict: {key}: expected shape {tuple(tensor.shape)}, got {got}")
        for name in list(self._state.tensors):
            tensor = model_state.get(name, self._state.tensors[name])
            self._state.drop(name)
            self._state.take(name, tensor)
        entries: dict[str, dict[str, Any]] = {}
        if optimizer_state is not None:
            for mine, theirs in zip(self._state.template.param_groups, optimizer_state["param_groups"], strict=True):
                mine.update({k: v for k, v in theirs.items() if k != "params"})
            for number, name in enumerate(self._parameter_order()):
                if name in self._state.tensors and number in optimizer_state["state"]:
                    entries[name] = {
                        k: v.clone() if isinstance(v, torch.Tensor) else v
                        for k, v in optimizer_state["state"][number].items()
                    }
        self._state.rebuild_optimizer(entries)


def _capture(model: nn.Module, loss_fn: Any, batch: Any, microbatches: int) -> tuple[Any, int, list[torch.Tensor]]:
    """The program of one microbatch, the batch's size, and the example microbatch's tensors."""
    leaves, spec = pytree.tree_flatten(batch)
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    total = _batch_size(tensors)
    if microbatches < 1 or microbatches > total:
        raise SegueError(f"microbatches must be between 1 and the batch size {total}, got {microbatches}")
    size = -(-total // microbatches)
    micro = [_split(leaf, total, size)[0] if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    example = pytree.tree_unflatten(micro, spec)
    step = TrainingStep(model, loss_fn).train(model.training)
    program = capture_program(step, (example,), name=type(model).__name__, prefix="model.")
    return program, total, [leaf for leaf in micro if isinstance(leaf, torch.Tensor)]


def _batch_size(tensors: list[torch.Tensor]) -> int:
    sizes = [tensor.shape[0] for tensor in tensors if tensor.dim()]
    if not sizes:
        raise SegueError("batch: it has no tensor with a batch dimension")
    return max(sizes)


def _split(tensor: torch.Tensor, total: int, size: int) -> list[torch.Tensor]:
    """A tensor's microbatches; one without the batch dimension goes to each whole."""
    if tensor.dim() and tensor.shape[0] == total:
        return list(tensor.split(size))
    return [tensor] * len(part_sizes(total, size))
