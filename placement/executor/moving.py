"""Moving an executor from one placement to another while it trains."""

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

from ..costs import part_sizes
from ..placement import Placement
from .migration import Forecast, Migration, MoveReport
from .reporting import table
from .routine import Routine

if TYPE_CHECKING:
    from .executor import Executor


def move(executor: "Executor", placement: Placement) -> MoveReport:
    """Move an executor to another placement; every worker calls it, and worker 0's placement counts.

    The schedule and the segments of the next step are made while the transfers are under way, and are part of what is
    agreed on.

    Raises:
        MoveFailed: on every worker, if the placement does not fit or a worker failed; all keep the old placement.
    """
    start = time.monotonic()
    agreed = torch.from_numpy(placement.devices.astype(np.int64))
    dist.broadcast(agreed, src=0)
    placement = Placement(agreed.numpy(), placement.microbatches)
    held, before = _placed(executor), executor.placement

    def look_ahead() -> Forecast | None:
        executor.placement = placement
        for routine in _routines(executor):
            executor._place(routine)
        return _forecast(executor) if executor.rank == 0 else None

    def plan() -> None:
        executor._training.plan(part_sizes(executor.batch_size, executor.micro_size))

    devices = before.devices.tolist(), placement.devices.tolist()
    migration = Migration(
        executor._state, executor._transport, executor.topology, executor.rank, *devices, look_ahead, plan
    )
    try:
        sent = migration.run()
    except BaseException:
        for owner, fields in held:
            vars(owner).update(fields)
        raise
    rows = table([time.monotonic() - start, sent])
    return MoveReport(len(before.moved(placement)), int(rows[:, 1].sum()), float(rows[:, 0].max()), migration.link_s())


def _routines(executor: "Executor") -> list[Routine]:
    return [routine for routines in executor._routines.values() for routine in routines]


def _placed(executor: "Executor") -> list[tuple[Any, dict[str, Any]]]:
    """The fields that a placement decides, with their values."""
    fields: list[tuple[Any, list[str]]] = [(executor, ["placement"])]
    for routine in _routines(executor):
        fields += [(routine, ["placement", "_plans"]), (routine.runner, ["_segments"])]
    return [(owner, {name: vars(owner)[name] for name in names}) for owner, names in fields]


def _forecast(executor: "Executor") -> Forecast:
    clock, placement = executor.clock(), executor.placement
    static = np.bincount(placement.devices, clock.costs.state_bytes, executor.topology.num_devices)
    return static, clock.step(placement).peak_bytes - static
