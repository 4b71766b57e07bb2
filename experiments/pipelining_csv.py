"""A placement's schedule for `torch.distributed.pipelining`: its compute-only CSV, which its schedules load."""

from os import PathLike

import numpy as np

from ..placement.clock import SimulatedClock
from ..placement.errors import SegueError
from ..placement.files import write_text
from ..placement.list_schedule import BACKWARD
from ..placement.placement import Placement
from ..placement.schedule import Instruction, make_schedule
from ..placement.stages import Stages


def write_pipelining_csv(path: str | PathLike, clock: SimulatedClock, devices: np.ndarray) -> list[str]:
    """Write what each rank computes, in order: a row a rank, `0F0` for stage 0's forward of microbatch 0, `0B0` backward.

    Stages count along the chain of the model; ranks are the devices that hold a stage, in the topology's order.

    Args:
        path: the file, `.csv`.
        clock: of a training step; its list scheduler orders the instructions.
        devices: device of every op, `int64[n]`.

    Returns:
        The devices' names, in the order of ranks.

    Raises:
        SegueError: if the placement is no chain of one stage a device, or part of it is not trained; torch's pipelines run
            nothing else.
    """
    schedule = make_schedule(clock, Placement(devices, clock.microbatches))
    names = [device.name for device in clock.topology.devices]
    position = _chain(schedule.stages, names)
    rows, ranks = [], []
    for name, program in zip(names, schedule.programs, strict=True):
        actions = [
            _action(instruction, position) for instruction in program if instruction.kind in ("forward", "backward")
        ]
        if actions:
            rows.append(",".join(actions))
            ranks.append(name)
    write_text(path, "\n".join(rows) + "\n")
    return ranks


def _action(instruction: Instruction, position: np.ndarray) -> str:
    letter = "B" if instruction.direction == BACKWARD else "F"
    return f"{position[instruction.stage]}{letter}{instruction.micro}"


def _chain(stages: Stages, names: list[str]) -> np.ndarray:
    """Place of every stage in the chain, `int64[s]`."""
    count = len(stages.device)
    for device in np.flatnonzero(np.bincount(stages.device) > 1)[:1]:
        raise SegueError(
            f"pipelining CSV: device {names[device]} holds {np.count_nonzero(stages.device == device)} stages; torch's "
            "pipelines take linear chains of one stage a device (the planner `contiguous` makes some)"
        )
    readers = np.diff(stages.succ_start)
    for stage in np.flatnonzero((readers > 1) | (stages.num_pred > 1))[:1]:
        raise SegueError(
            f"pipelining CSV: the stage on {names[stages.device[stage]]} sends to {readers[stage]} stages and receives from "
            f"{stages.num_pred[stage]}; torch's pipelines take linear chains, one neighbour each way"
        )
    if np.count_nonzero(stages.num_pred == 0) > 1:
        raise SegueError(
            "pipelining CSV: the placement has stages that share nothing; torch's pipelines take one chain"
        )
    for stage in np.flatnonzero(~stages.has_backward)[:1]:
        raise SegueError(
            f"pipelining CSV: the stage on {names[stages.device[stage]]} has no backward pass; torch's pipelines need one "
            "for every stage of a training step"
        )
    # Stages are in topological order, which in a chain is the only one there is.
    return np.arange(count)
