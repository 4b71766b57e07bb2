"""What the workers of the executor's tests do; importable by name in a new process."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from segue.placement.clock import SimulatedClock
from segue.placement.errors import SegueError
from segue.placement.executor import Executor, MeasuredClock, MoveFailed, probe
from segue.placement.executor import executor as executor_module
from segue.placement.executor.direct_transport import DirectTransport
from segue.placement.placement import Placement, colocate
from segue.placement.topology import Topology
from segue.placement.training_step import TrainingStep

from . import models

CASES: dict[str, tuple[Callable[[], nn.Module], Callable[..., Any], Any]] = {
    "branches": (models.Branches, models.images, nn.CrossEntropyLoss()),
    "dropout": (lambda: models.Branches(dropout=0.5), models.images, nn.CrossEntropyLoss()),
    "tied": (models.TiedLanguageModel, models.tokens, models.token_loss),
    "frozen": (models.Frozen, models.vectors, nn.CrossEntropyLoss()),
    **{
        f"dag-{seed}": (
            lambda seed=seed: models.RandomDag(seed),
            lambda step, count=8: models.vectors(step, count, 6),
            nn.CrossEntropyLoss(),
        )
        for seed in range(6)
    },
}
MICROBATCHES = 3
STEPS = 5
SHORT_STEP = 3
"""The batch of this step is smaller than the others."""


def batch_of(case: str, step: int) -> Any:
    return CASES[case][1](step, 5 if step == SHORT_STEP else 8)


def make_executor(
    case: str, topology: Topology, max_grad_norm: float | None = None, microbatches: int = MICROBATCHES
) -> Executor:
    build, batch, loss_fn = CASES[case]
    torch.manual_seed(0)
    model = build().train()
    trained = [p for p in model.parameters() if p.requires_grad]
    return Executor(
        model,
        optimizer=torch.optim.AdamW(trained, lr=1e-2),
        loss_fn=loss_fn,
        example_batch=batch(0),
        topology=topology,
        microbatches=microbatches,
        seed=3,
        max_grad_norm=max_grad_norm,
    )


def random_placement(executor: Executor, rng: np.random.Generator) -> Placement:
    devices = rng.integers(0, executor.topology.num_devices, executor.graph.num_ops)
    if rng.random() < 0.5:
        devices = np.sort(devices)
    return Placement(colocate(devices, executor.graph), MICROBATCHES)


def train(case: str, topology: Topology, moving_seed: int | None) -> tuple[list[float], dict, dict]:
    """Losses, model state and optimizer state of a short run that moves at random, or never."""
    return train_on(make_executor(case, topology), case, moving_seed)


def train_on(executor: Executor, case: str, moving_seed: int | None) -> tuple[list[float], dict, dict]:
    """`train` by an executor that has not trained yet, or begins anew."""
    rng = np.random.default_rng(moving_seed)
    losses = []
    for step in range(STEPS):
        if moving_seed is not None:
            executor.apply(random_placement(executor, rng))
        losses.append(executor.step(batch_of(case, step)))
    return losses, executor.state_dict(), executor.optimizer_state_dict()


def begin_anew(executor: Executor) -> Callable[[], None]:
    """What takes an executor back to where it is now; to make another takes far longer than to train these few steps."""
    state, steps = (executor.state_dict(), executor.optimizer_state_dict()), executor.steps

    def begin() -> None:
        executor.load_state_dict(*state)
        executor.steps = steps

    return begin


def compare_moving(topology: Topology, cases: list[str]) -> dict[str, Any]:
    """For each case: a run that never moves, and two that move at random."""
    runs: dict[str, Any] = {case: [] for case in cases}
    for case in cases:
        executor = make_executor(case, topology)
        begin = begin_anew(executor)
        for moving_seed in (None, 1, 2):
            begin()
            runs[case].append(train_on(executor, case, moving_seed))
    return runs


def compare_moving_directly(topology: Topology, cases: list[str]) -> dict[str, Any]:
    """`compare_moving` over links with a group each and no tags, as NCCL's are."""

    def direct(topology: Topology, rank: int, device: torch.device) -> DirectTransport:
        return DirectTransport(topology, rank, device, backend="gloo")

    executor_module.make_transport = direct
    return compare_moving(topology, cases)


def assert_same_bits(runs: list[tuple[list[float], dict, dict]]) -> None:
    """Losses, model state and optimizer state of the first run are those of all others, bit for bit."""
    (losses, state, optimizer), *others = runs
    for other_losses, other_state, other_optimizer in others:
        assert other_losses == losses
        assert all(torch.equal(state[name], other_state[name]) for name in state)
        for number, entries in optimizer["state"].items():
            for key, value in entries.items():
                assert torch.equal(value, other_optimizer["state"][number][key])


def plain(case: str) -> tuple[list[float], nn.Module, torch.optim.Optimizer]:
    """The same run in plain PyTorch."""
    build, _, loss_fn = CASES[case]
    torch.manual_seed(0)
    model = build().train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    step_module = TrainingStep(model, loss_fn)
    losses = []
    for step in range(STEPS):
        inputs, target = batch_of(case, step)
        total = 0.0
        for micro in zip(inputs.split(3), target.split(3), strict=True):
            weight = len(micro[0]) / len(inputs)
            loss = step_module(micro)
            (loss * weight).backward()
            total += weight * loss.item()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
    return losses, model, optimizer


def save_and_load(topology: Topology) -> tuple[list[float], list[float]]:
    """Losses of a run, and of one that is saved in the middle and continued by a new executor elsewhere."""
    straight = train("branches", topology, None)[0]
    first = make_executor("branches", topology)
    losses = [first.step(batch_of("branches", step)) for step in range(2)]
    state, optimizer_state = first.state_dict(), first.optimizer_state_dict()
    second = make_executor("branches", topology)
    second.apply(random_placement(second, np.random.default_rng(5)))
    second.load_state_dict(state, optimizer_state)
    second.steps = 2
    losses += [second.step(batch_of("branches", step)) for step in range(2, STEPS)]
    return straight, losses


def fail_in_a_move(topology: Topology) -> dict[str, Any]:
    """A receive fails on one worker; then the same move succeeds."""
    executor = make_executor("branches", topology)
    losses = [executor.step(batch_of("branches", 0))]
    before = executor.placement
    target = Placement(np.full(executor.graph.num_ops, 1), MICROBATCHES)
    receive = executor._transport.receive

    def broken(key: Any) -> Any:
        receive(key)
        raise RuntimeError("injected")

    if dist.get_rank() == 1:
        executor._transport.receive = broken
    try:
        executor.apply(target)
        message = ""
    except MoveFailed as error:
        message = str(error)
    executor._transport.receive = receive
    kept = executor.placement == before
    losses.append(executor.step(batch_of("branches", 1)))
    report = executor.apply(target)
    losses += [executor.step(batch_of("branches", step)) for step in range(2, STEPS)]
    return {"message": message, "kept": kept, "losses": losses, "bytes": report.bytes, "ops": report.ops}


def reject_bad_calls(topology: Topology) -> list[str]:
    """Messages of calls that a user can get wrong; training goes on after each."""
    executor = make_executor("branches", topology)
    messages = []
    for call in (
        lambda: executor.step((torch.randn(8, 2, 6, 6), torch.zeros(8, dtype=torch.int64))),
        lambda: executor.step({"x": torch.randn(8, 1, 6, 6)}),
        lambda: executor.apply(Placement(np.zeros(3, np.int64), MICROBATCHES)),
        lambda: executor.apply(Placement(np.zeros(executor.graph.num_ops, np.int64), 2)),
        lambda: executor.load_state_dict({}),
    ):
        try:
            call()
            messages.append("")
        except SegueError as error:
            messages.append(str(error))
    executor.step(batch_of("branches", 0))
    return messages


def paced(topology: Topology) -> dict[str, Any]:
    """Emulated steps before and after a device is slowed, beside what the simulator says."""
    executor = make_executor("branches", topology)
    rng = np.random.default_rng(0)
    executor.apply(random_placement(executor, rng))
    measured, predicted = [], []
    for factor in (1.0, 6.0):
        for device in range(topology.num_devices):
            executor.slow(device, factor)
        for step in range(4):
            executor.step(batch_of("branches", 0), timeline=step == 3)
        report = executor.report
        assert report is not None
        measured.append(report.step_time_s)
        predicted.append(executor.clock().step_time(executor.placement.devices))
    assert report.timeline
    assert report.hidden_share is not None
    return {
        "hidden": report.hidden_share,
        "measured": measured,
        "predicted": predicted,
        "busy": report.busy_s.tolist(),
        "spans": report.timeline,
    }


def clipped(topology: Topology) -> dict[str, float]:
    """An emulated step whose gradients are clipped, beside the simulator's, which also says what it is without."""
    executor = make_executor("branches", topology, max_grad_norm=1.0, microbatches=1)
    half = (np.arange(executor.graph.num_ops) >= executor.graph.num_ops // 2).astype(np.int64)
    executor.apply(Placement(colocate(half, executor.graph), 1))
    for _ in range(2):
        executor.step(batch_of("branches", 0))
    assert executor.report is not None
    clock = executor.clock()
    without = SimulatedClock(clock.graph, clock.topology, clock.costs, clock.sizes)
    devices = executor.placement.devices
    predicted, unclipped = clock.step_time(devices), without.step_time(devices)
    return {"measured": executor.report.step_time_s, "predicted": predicted, "without": unclipped}


def measured_clock(topology: Topology) -> dict[str, Any]:
    """Placements timed by training under them."""
    executor = make_executor("branches", topology)
    clock = MeasuredClock(executor, iter([batch_of("branches", step) for step in range(STEPS)]))
    if dist.get_rank() != 0:
        clock.serve()
        return {}
    rng = np.random.default_rng(0)
    reports = [clock.step(random_placement(executor, rng)) for _ in range(STEPS)]
    clock.close()
    return {"losses": clock.losses, "sources": {report.source for report in reports}}


def overflow(topology: Topology) -> None:
    """Train on a device whose memory is too small."""
    make_executor("branches", topology).step(batch_of("branches", 0))


def links(topology: Topology) -> Topology:
    return probe(topology)


def die(topology: Topology, victim: int) -> None:
    """One worker is killed while the others wait for it."""
    executor = make_executor("branches", topology)
    executor.apply(random_placement(executor, np.random.default_rng(0)))
    executor.step(batch_of("branches", 0))
    if dist.get_rank() == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    for step in range(1000):
        executor.step(batch_of("branches", step % SHORT_STEP))


def complain(topology: Topology) -> None:
    raise SegueError("model: too strange")


def hang(topology: Topology) -> None:
    time.sleep(600)
