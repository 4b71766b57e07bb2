"""Checkpoints through torch.distributed.checkpoint: every worker writes what it owns, and all is renamed as a whole."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from ..errors import SegueError
from ..placement import Placement
from .checkpoint_files import FORMAT, begin, find, finish, laid_out, plain_group, plain_state
from .elastic import Restart, restart_asked
from .executor import Executor
from .message import encode_order, memory_order
from .migration import fork, switch
from .state import State
from .vote import Vote

__all__ = ["Checkpoint", "CheckpointFailed", "load_checkpoint", "plain_state", "save_checkpoint"]


class CheckpointFailed(RuntimeError):
    """A checkpoint could not be written; the ones before it are whole."""


@dataclass(frozen=True)
class Checkpoint:
    """What a run goes on from.

    Attributes:
        step: training steps that had been done.
        extra: what the caller saved with it.
        placement: where the ops were, if they are the same ops and all of those devices are there; else None.
    """

    step: int
    extra: dict[str, Any]
    placement: Placement | None


def save_checkpoint(
    executor: Executor, folder: str | os.PathLike, extra: dict[str, Any] | None = None, keep: int = 2
) -> Path:
    """Write the run's state to `folder/step-…`; call it on every worker, between two steps.

    Each worker writes the tensors it owns to a safetensors file of its own, worker 0 a JSON file beside them; there is no
    pickle in a checkpoint. They are written to `step-….tmp`, which is renamed when all is on disk; then the file `latest`
    is replaced by one that names it. A full disk or a killed worker leaves the checkpoint before whole, and `latest` on it.

    Args:
        executor: the run.
        folder: on a file system that all workers share.
        extra: anything else to keep, such as a scheduler's `state_dict()`; JSON values (worker 0's are written).
        keep: checkpoints that stay in the folder, this one among them.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointFailed: on every worker, if it could not be written.
        Restart: on every worker, once it is written, if the launcher is to start them again on other devices.
        SegueError: if gradients wait for an update, which are not saved.
    """
    if executor.pending:
        raise SegueError(
            "save_checkpoint: gradients wait for an update and are not saved; call step(update=True) first"
        )
    if keep < 1:
        raise SegueError(f"keep: at least 1 checkpoint has to stay, got {keep}")
    root, vote = Path(folder), Vote(CheckpointFailed)
    name, tensors, mine = "", {}, ({}, {})
    with vote.attempt("preparing a checkpoint"):
        tensors, mine = _owned(executor)
        name = begin(root, executor.steps) if executor.rank == 0 else ""
    parts = vote.gather((name, *mine))
    name = parts[0][0]
    aside = root / f"{name}.tmp"
    with vote.attempt(f"writing {aside}"):
        _write(tensors, aside)
    with vote.attempt(f"finishing {root / name}"):
        if executor.rank == 0 and not vote.failure:
            finish(root, name, _record(executor, parts, extra), keep)
    if vote.failure and executor.rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
    asked = vote.gather(restart_asked())[0]
    if asked:
        raise Restart
    return root / name


def _owned(executor: Executor) -> tuple[dict[str, torch.Tensor], tuple[dict, dict]]:
    """This worker's tensors as they are written, plain numbers of its optimizer state, and unusual memory orders."""
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    state = executor._state
    for name, tensor in state.tensors.items():
        tensors[f"model.{name}"] = tensor.detach()
    for name, entries in state.optimizer_state().items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{key}.{name}"] = value
            else:
                numbers.setdefault(name, {})[key] = value
    orders = {key: encode_order(memory_order(t)) for key, t in tensors.items() if not t.is_contiguous()}
    return {key: tensor.contiguous() for key, tensor in tensors.items()}, (numbers, orders)


def _write(tensors: dict[str, torch.Tensor], aside: Path) -> None:
    """Every worker's file, flushed to disk; raises the same error on every worker."""
    with _one_line():
        dcp.save(tensors, storage_writer=dcp.HuggingFaceStorageWriter(str(aside), save_distributed=True))


def _read(targets: dict[str, torch.Tensor], path: Path) -> None:
    """Fill the tensors from whichever files have them; raises the same error on every worker."""
    with _one_line():
        dcp.load(targets, storage_reader=dcp.HuggingFaceStorageReader(str(path)))


@contextmanager
def _one_line() -> Iterator[None]:
    """The workers' failures without their tracebacks."""
    try:
        yield
    except CheckpointException as error:
        raise OSError("; ".join(f"worker {rank}: {cause[0]}" for rank, cause in error.failures.items())) from None


def _record(executor: Executor, parts: list[tuple[str, dict, dict]], extra: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "step": executor.steps,
        "seed": executor.seed,
        "graph": executor.graph.hash,
        "placement": executor.placement.devices.tolist(),
        "names": {key: executor._state.names[key] for key in executor.model.state_dict()},
        "orders": {key: order for _, _, orders in parts for key, order in orders.items()},
        "parameters": list(executor._state.group_of),
        "groups": executor._state.template.state_dict()["param_groups"],
        "numbers": {name: values for _, numbers, _ in parts for name, values in numbers.items()},
        "extra": extra or {},
    }


def load_checkpoint(executor: Executor, folder: str | os.PathLike) -> Checkpoint:
    """Go on from a checkpoint, on any number of devices and under any placement; call it on every worker.

    The executor keeps its placement; every worker reads what it owns under it. Steps, seed, hyperparameters, parameters,
    buffers and optimizer state are then those that were saved. Nothing that is read can run code.

    Args:
        executor: of the same model and optimizer.
        folder: what `save_checkpoint` was given (the latest is taken), or one checkpoint in it.

    Raises:
        SegueError: on every worker, if there is no such checkpoint or it is of another model; nothing has changed then.
    """
    vote = Vote(SegueError)
    path, record, targets, after = Path(), {}, {}, executor._state
    found, groups = Checkpoint(0, {}, None), []
    with vote.attempt(f"reading {folder}"):
        path, record = find(folder)
        found = Checkpoint(record["step"], record["extra"], _placement(executor, record))
        groups = [plain_group(group) for group in record["groups"]]
        targets = _targets(executor, path, record)
    vote.settle()
    with vote.attempt(f"reading {path}"):
        _read(targets, path)
    with vote.attempt(f"taking over {path}"):
        after = fork(executor._state)
        _take(after, targets, record)
    vote.settle()
    switch(executor._state, after)
    for mine, saved in zip(executor._state.template.param_groups, groups, strict=True):
        mine.update({key: value for key, value in saved.items() if key != "params"})
    executor.steps, executor.seed, executor.pending = found.step, record["seed"], False
    return found


def _targets(executor: Executor, path: Path, record: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Empty tensors for what this worker owns: its parameters and buffers, and what was saved of their optimizer state."""
    state = executor._state
    if record["parameters"] != list(state.group_of):
        raise SegueError(f"{path}: it is of another model or optimizer: its parameters have other names")
    if len(record["groups"]) != len(state.template.param_groups):
        raise SegueError(
            f"{path}: {len(record['groups'])} parameter groups, the optimizer has {len(state.template.param_groups)}"
        )
    saved: dict[str, Any] = dcp.HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    targets = {}
    for name, tensor in state.tensors.items():
        there = saved.get(f"model.{name}")
        got = "none" if there is None else f"{tuple(there.size)} of {there.properties.dtype}"
        if got != f"{tuple(tensor.shape)} of {tensor.dtype}":
            raise SegueError(f"{path}: {name}: expected shape {tuple(tensor.shape)} of {tensor.dtype}, got {got}")
    for key, there in saved.items():
        part, *_, name = key.split(".", 1 if key.startswith("model.") else 2)
        if part in ("model", "optimizer") and name in state.tensors:
            targets[key] = torch.empty(there.size, dtype=there.properties.dtype)
    return targets


def _take(after: State, targets: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
    """Make a fork of the state what was read."""
    tensors = {key: laid_out(tensor, record["orders"].get(key)) for key, tensor in targets.items()}
    entries: dict[str, dict[str, Any]] = {n: dict(v) for n, v in record["numbers"].items() if n in after.tensors}
    for name in list(after.tensors):
        after.drop(name)
        after.take(name, tensors.pop(f"model.{name}"))
    for key, tensor in tensors.items():
        _, entry, name = key.split(".", 2)
        on_host = entry == "step" and after.counts_on_host
        entries.setdefault(name, {})[entry] = tensor if on_host else tensor.to(after.device)
    after.rebuild_optimizer(entries)


def _placement(executor: Executor, record: dict[str, Any]) -> Placement | None:
    devices = np.array(record["placement"], np.int64)
    if record["graph"] != executor.graph.hash or devices.max() >= executor.topology.num_devices:
        return None
    return Placement(devices, executor.microbatches)
