"""What the workers of the tests of moves and checkpoints do; importable by name in a new process."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystem

from segue.placement.errors import SegueError
from segue.placement.executor import Executor, MoveFailed
from segue.placement.executor.checkpoint import CheckpointFailed, load_checkpoint, save_checkpoint
from segue.placement.executor.state import State
from segue.placement.placement import Placement, colocate
from segue.placement.topology import Topology
from segue.placement.training_step import TrainingStep

from . import models
from .jobs import MICROBATCHES, batch_of, make_executor, random_placement

# Where a failure is injected: what is called there on every worker that sends and receives.
STAGES: dict[str, Callable[[Executor], tuple[Any, str]]] = {
    "exchange of manifests": lambda executor: (executor._state, "optimizer_state"),
    "placing the routines": lambda executor: (executor, "_place"),
    "allocation of receive buffers": lambda executor: (executor._transport, "blank"),
    "filling of send buffers": lambda executor: (executor._transport, "pack"),
    "posting of receives": lambda executor: (executor._transport, "expect"),
    "sending": lambda executor: (executor._transport, "dispatch"),
    "making the segments": lambda executor: (executor._training.runner, "segments"),
    "receiving": lambda executor: (executor._transport, "receive"),
    "taking the tensors": lambda executor: (State, "take"),
    "rebuilding the optimizer": lambda executor: (State, "rebuild_optimizer"),
}


@contextmanager
def failing_once(target: Any, name: str, error: Exception) -> Iterator[None]:
    """Let the first call raise; those after it are real."""
    real, left = getattr(target, name), [error]

    def call(*args: Any, **kwargs: Any) -> Any:
        if left:
            raise left.pop()
        return real(*args, **kwargs)

    with mock.patch.object(target, name, call):
        yield


def spread(executor: Executor) -> Placement:
    """A third of the ops, in order, on each of three devices."""
    devices = np.arange(executor.graph.num_ops) * executor.topology.num_devices // executor.graph.num_ops
    return Placement(colocate(devices, executor.graph), MICROBATCHES)


def rotated(executor: Executor) -> Placement:
    """Everything moves to the next device, so that every worker sends and receives."""
    return Placement((executor.placement.devices + 1) % executor.topology.num_devices, MICROBATCHES)


def possessions(executor: Executor) -> dict[str, Any]:
    """What a worker has, as objects, addresses and numbers."""
    state = executor._state
    optimizer_state = {
        (name, key): (value, value.tolist())
        for name, entries in state.optimizer_state().items()
        for key, value in entries.items()
    }
    return {
        "tensors": {name: (t, t.data_ptr(), t.tolist()) for name, t in state.tensors.items()},
        "optimizer": optimizer_state,
        "placement": executor.placement,
        "segments": [id(segment) for segment in executor._training.plan([3, 3, 2]).segments.values()],
    }


def same(before: Any, after: Any) -> bool:
    """Equal, and tensors the very same objects."""
    if isinstance(before, torch.Tensor):
        return before is after
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(same(before[key], after[key]) for key in before)
    if isinstance(before, tuple | list):
        return len(before) == len(after) and all(same(a, b) for a, b in zip(before, after, strict=True))
    return before == after


def attempt(executor: Executor, placement: Placement) -> str:
    """Try to move; the message of the failure."""
    try:
        executor.apply(placement)
    except MoveFailed as error:
        return str(error)
    return ""


def fail_at_every_stage(topology: Topology, case: str) -> dict[str, Any]:
    """For every stage and worker: a move that fails there, a step, the same move without the failure, a step."""
    executor = make_executor(case, topology)
    executor.apply(spread(executor))
    losses = [executor.step(batch_of(case, 0))]
    outcomes = []
    for stage, place in STAGES.items():
        for rank in range(topology.num_devices):
            before, target = possessions(executor), rotated(executor)
            there = place(executor) if executor.rank == rank else (mock.Mock(), "nothing")
            with failing_once(*there, RuntimeError("injected")):
                message = attempt(executor, target)
            kept = same(before, possessions(executor))
            losses.append(executor.step(batch_of(case, len(losses) % 3)))
            again = attempt(executor, target)
            losses.append(executor.step(batch_of(case, len(losses) % 3)))
            outcomes.append((stage, rank, message, kept, again, executor.placement == target))
    still = make_executor(case, topology)
    expected = [still.step(batch_of(case, step % 3)) for step in range(len(losses))]
    return {
        "outcomes": outcomes,
        "losses": losses,
        "expected": expected,
        "state": (executor.state_dict(), still.state_dict()),
    }


def move_to_small_devices(topology: Topology) -> dict[str, Any]:
    """Moves to a device that has one byte too few, and just enough; with and without activations that count."""
    executor = make_executor("branches", topology)
    losses = [executor.step(batch_of("branches", 0))]
    target = Placement(np.ones(executor.graph.num_ops, np.int64), MICROBATCHES)

    def with_memory(nbytes: float) -> str:
        small = replace(topology.devices[1], memory_bytes=nbytes)
        executor.topology = replace(topology, devices=(topology.devices[0], small))
        return attempt(executor, target)

    refused = with_memory(1.0)
    losses.append(executor.step(batch_of("branches", 1)))
    need = int(refused.split("device cpu1: ")[1].split()[0])
    messages = [refused, with_memory(need - 1), with_memory(need)]
    losses.append(executor.step(batch_of("branches", 2)))
    owned = executor._state.nbytes()
    still = make_executor("branches", topology)
    expected = [still.step(batch_of("branches", step)) for step in range(3)]
    return {"need": need, "messages": messages, "losses": losses, "expected": expected, "owned": owned}


def move_a_little(topology: Topology) -> dict[str, Any]:
    """Move the ops at one boundary; says what each worker still has."""
    executor = make_executor("branches", topology)
    executor.apply(spread(executor))
    executor.step(batch_of("branches", 0))
    before = possessions(executor)
    devices = executor.placement.devices.copy()
    devices[np.flatnonzero(devices == 0)[-1]] = 1
    report = executor.apply(Placement(colocate(devices, executor.graph), MICROBATCHES))
    after = possessions(executor)
    stayed = before["tensors"].keys() & after["tensors"].keys()
    return {
        "moved": sorted(before["tensors"].keys() ^ after["tensors"].keys()),
        "bytes": report.bytes,
        "tensors": all(same(before["tensors"][name], after["tensors"][name]) for name in stayed),
        "optimizer": all(same(entry, after["optimizer"].get(key, entry)) for key, entry in before["optimizer"].items()),
        "segments": before["segments"] == after["segments"],
    }


def swap_pairs(topology: Topology) -> Any:
    """A move over two links that have nothing in common."""
    executor = make_executor("branches", topology)
    devices = np.where(spread(executor).devices < 2, 0, 2)
    executor.apply(Placement(colocate(devices, executor.graph), MICROBATCHES))
    return executor.apply(Placement(executor.placement.devices + 1, MICROBATCHES))


CASES = st.tuples(
    st.integers(0, 10_000),
    st.integers(2, 12),
    st.integers(1, 4),
    st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 10_000), st.booleans())), min_size=2, max_size=6),
)
"""Seed and nodes of a model, microbatches, and for every step the placement (seed, contiguous) to move to before it."""


def never_changes_a_bit(topology: Topology, examples: int) -> int:
    """Worker 0 draws models and moves, and compares; returns how many it has tried."""
    tried = []

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(CASES)
    def check(case: Any) -> None:
        dist.broadcast_object_list([case], src=0)
        tried.append(case)
        still, moved, plain = compare(topology, *case)
        assert moved[0] == still[0]
        assert same_numbers(moved[1:], still[1:])
        np.testing.assert_allclose(still[0], plain, rtol=1e-5)

    if dist.get_rank() == 0:
        try:
            check()
        finally:
            dist.broadcast_object_list([None], src=0)
    else:
        box: list[Any] = [None]
        while dist.broadcast_object_list(box, src=0) or box[0] is not None:
            compare(topology, *box[0])
    return len(tried)


def same_numbers(first: Any, second: Any) -> bool:
    """Equal bit for bit, in any nesting."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same_numbers(first[key], second[key]) for key in first)
    if isinstance(first, tuple | list):
        return len(first) == len(second) and all(same_numbers(a, b) for a, b in zip(first, second, strict=True))
    return first == second


def compare(topology: Topology, seed: int, nodes: int, microbatches: int, moves: list[Any]) -> tuple[Any, Any, Any]:
    """Losses, parameters and optimizer state without moves and with them; and plain PyTorch's losses."""
    torch.manual_seed(seed)
    model, loss_fn = models.RandomDag(seed, nodes), nn.CrossEntropyLoss()
    executor = Executor(
        model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2),
        loss_fn=loss_fn,
        example_batch=models.vectors(0, 8, 6),
        topology=topology,
        microbatches=microbatches,
    )
    beginning = executor.state_dict()

    def train(moves: list[Any]) -> tuple[list[float], dict, dict]:
        executor.load_state_dict(beginning)
        losses = []
        for step, to in enumerate(moves):
            if to is not None:
                devices = np.random.default_rng(to[0]).integers(0, topology.num_devices, executor.graph.num_ops)
                devices = colocate(np.sort(devices) if to[1] else devices, executor.graph)
                executor.apply(Placement(devices, microbatches))
            losses.append(executor.step(models.vectors(step, 8, 6)))
        return losses, executor.state_dict(), executor.optimizer_state_dict()

    still = train([None] * len(moves))
    return still, train(moves), plain_losses(model, loss_fn, beginning, microbatches, len(moves))


def plain_losses(model: nn.Module, loss_fn: Any, beginning: dict, microbatches: int, steps: int) -> list[float]:
    """The same training in plain PyTorch."""
    model.load_state_dict(beginning)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(steps):
        inputs, target = models.vectors(step, 8, 6)
        size = -(-len(inputs) // microbatches)
        total = 0.0
        for x, y in zip(inputs.split(size), target.split(size), strict=True):
            loss = loss_fn(model(x), y) * (len(x) / len(inputs))
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


def train_and_save(topology: Topology, folder: str, case: str, steps: int, at: list[int]) -> list[float]:
    """Losses of a run that moves at random, with checkpoints after some of its steps."""
    executor = make_executor(case, topology)
    rng = np.random.default_rng(7)
    losses = []
    for step in range(steps):
        executor.apply(random_placement(executor, rng))
        losses.append(executor.step(batch_of(case, step)))
        if step + 1 in at:
            save_checkpoint(executor, folder, extra={"after": step + 1})
    return losses


def resume(topology: Topology, folder: str, case: str, steps: int) -> dict[str, Any]:
    """Go on from the latest checkpoint under another placement."""
    executor = make_executor(case, topology)
    executor.apply(random_placement(executor, np.random.default_rng(11)))
    found = load_checkpoint(executor, folder)
    losses = [executor.step(batch_of(case, step)) for step in range(found.step, steps)]
    return {"found": found, "losses": losses, "state": executor.state_dict()}


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, loss_fn: Any, batch: Any) -> float:
    """One step of plain PyTorch, over the same microbatches."""
    inputs, target = batch
    step_module, total = TrainingStep(model, loss_fn), 0.0
    for micro in zip(inputs.split(3), target.split(3), strict=True):
        weight = len(micro[0]) / len(inputs)
        loss = step_module(micro)
        (loss * weight).backward()
        total += weight * loss.item()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def from_plain(topology: Topology, case: str, model_state: dict, optimizer_state: dict, steps: range) -> list[float]:
    """Go on where plain PyTorch has stopped."""
    executor = make_executor(case, topology)
    executor.apply(random_placement(executor, np.random.default_rng(13)))
    executor.load_state_dict(model_state, optimizer_state)
    return [executor.step(batch_of(case, step)) for step in steps]


@contextmanager
def broken_disk(event: Callable[[Any], None], suffix: str) -> Iterator[None]:
    """Files that end so are cut short in the middle of writing, by `event`."""
    real = FileSystem.create_stream

    @contextmanager
    def create_stream(self: Any, path: Any, mode: str) -> Iterator[Any]:
        with real(self, path, mode) as stream:
            if not str(path).endswith(suffix):
                yield stream
                return
            stream.write(b"half of it")
            stream.flush()
            event(stream)

    with mock.patch.object(FileSystem, "create_stream", create_stream):
        yield


def full_disk(_: Any) -> None:
    raise OSError(28, "No space left on device")


def kill(_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def save_on_a_full_disk(topology: Topology, folder: str) -> dict[str, Any]:
    """A second checkpoint that fails on worker 1, or at the very end on worker 0; then one that does not."""
    executor = make_executor("branches", topology)
    executor.apply(spread(executor))
    losses = [executor.step(batch_of("branches", 0))]
    save_checkpoint(executor, folder)
    messages, listings = [], []
    for rank, patch in (
        (1, lambda: broken_disk(full_disk, ".safetensors")),
        (0, lambda: failing_once(Path, "rename", OSError(28, "No space left on device"))),
    ):
        losses.append(executor.step(batch_of("branches", len(losses))))
        with patch() if executor.rank == rank else failing_once(mock.Mock(), "nothing", OSError()):
            try:
                save_checkpoint(executor, folder)
            except CheckpointFailed as error:
                messages.append(str(error))
        dist.barrier()
        listings.append(sorted(path.name for path in Path(folder).iterdir()))
        dist.barrier()
    losses.append(executor.step(batch_of("branches", 3)))
    path = save_checkpoint(executor, folder)
    return {"messages": messages, "listings": listings, "losses": losses, "last": path.name}


def die_while_saving(topology: Topology, folder: str, victim: int) -> None:
    """The second checkpoint kills a worker in the middle of its file."""
    executor = make_executor("branches", topology)
    executor.apply(spread(executor))
    executor.step(batch_of("branches", 0))
    save_checkpoint(executor, folder)
    executor.step(batch_of("branches", 1))
    with (
        broken_disk(kill, ".safetensors")
        if executor.rank == victim
        else failing_once(mock.Mock(), "nothing", OSError())
    ):
        save_checkpoint(executor, folder)


def refuse(topology: Topology, folders: dict[str, str]) -> dict[str, tuple[str, bool]]:
    """Messages of checkpoints that cannot be loaded, and whether the executor was left alone."""
    executor = make_executor("branches", topology)
    executor.step(batch_of("branches", 0))
    results = {}
    for name, folder in folders.items():
        before, message = possessions(executor), ""
        try:
            load_checkpoint(executor, folder)
        except SegueError as error:
            message = str(error)
        results[name] = (message, same(before, possessions(executor)))
    return results


def keep_memory_order(topology: Topology, folder: str) -> list[tuple[int, ...]]:
    """Strides of a convolution's weight that was saved in `channels_last`, before and after."""
    strides = []
    for first in (True, False):
        executor = make_executor("branches", topology)
        if first:
            name, state = "right.0.weight", executor._state
            tensor = state.tensors[name].detach().to(memory_format=torch.channels_last)
            state.drop(name)
            state.take(name, tensor)
            state.rebuild_optimizer({})
            executor.step(batch_of("branches", 0))
            save_checkpoint(executor, folder)
        else:
            load_checkpoint(executor, folder)
        strides.append(executor._state.tensors["right.0.weight"].stride())
    return strides
