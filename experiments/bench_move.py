"""How long training stands still for a move, beside saving a checkpoint and starting again with the other split.

    python -m segue.experiments.bench_move [--mib 1 4 16 64] [--moves 9]

A chain of linear layers with AdamW trains on `emulated-4`; a move shifts every boundary by one layer, so that three links
carry a layer each, with its optimizer state. `link` is the time that its bytes need on the slowest of these links, `pause`
what lies between two steps (medians over the moves); the goal is a pause of at most 1.3 times `link` plus one step. The
other way is what people do without segue: gather the state dicts, `torch.save`, end, start again with the other split,
`torch.load`, up to the next step (once for each size).
"""

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from ..placement.costs import Profile
from ..placement.executor import Executor, launch
from ..placement.placement import Placement, colocate
from ..placement.presets import preset
from ..placement.topology import Topology
from .tables import format_table

TOPOLOGY = "emulated-4"
MIB = 2.0**20
LAYERS, BATCH, MICROBATCHES = 8, 16, 4
BEFORE, AFTER = (0, 0, 1, 1, 2, 2, 3, 3), (0, 1, 1, 2, 2, 3, 3, 3)
"""Device of each layer."""
MOVED = sum(a != b for a, b in zip(BEFORE, AFTER, strict=True))
GOAL, GOAL_RESTART = 1.3, 20
HEADERS = (
    "moved (MiB)", "link (ms)", "pause (ms)", "quartiles", "pause / link", "step (ms)", "(pause - step) / link",
    "restart (s)", "restart / pause",
)  # fmt: skip


@dataclass(frozen=True)
class Moves:
    """What moving cost.

    Attributes:
        bytes: that travelled in each move.
        link_s: seconds that they need on the slowest link.
        pauses_s: seconds of each move.
        step_s: seconds of a step (median).
        profile: op times, for the run that is started again.
        saving_began: when the checkpoint was begun (`time.monotonic`).
    """

    bytes: int
    link_s: float
    pauses_s: list[float]
    step_s: float
    profile: Profile
    saving_began: float


def main() -> int:
    """Run all sizes and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=float, nargs="+", default=[1, 4, 16, 64], help="MiB to move")
    parser.add_argument("--moves", type=int, default=9, help="moves of each size")
    options = parser.parse_args()
    rows = []
    for mib in options.mib:
        print(f"== {mib:g} MiB", file=sys.stderr)
        rows.append(_row(mib, options.moves))
    print(f"{LAYERS} linear layers with AdamW on {TOPOLOGY} (emulated); medians of {options.moves} moves")
    print(format_table(rows, HEADERS))
    print(f"goals: (pause - step) / link <= {GOAL}, restart / pause >= {GOAL_RESTART}")
    return 0


def _row(mib: float, moves: int) -> tuple[object, ...]:
    topology = preset(TOPOLOGY)
    # A layer's weight, its two moments and next to nothing else, in float32.
    width = round((mib * MIB / MOVED / 12) ** 0.5)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "checkpoint.pt")
        results: list[Moves] = launch(move_and_save, topology, topology, width, moves, file)
        went_on = max(launch(start_again, topology, topology, width, results[0].profile, file))
    moved = results[0]
    pause, (low, high) = float(np.median(moved.pauses_s)), np.percentile(moved.pauses_s, [25, 75])
    restart = went_on - min(result.saving_began for result in results)
    return (
        f"{moved.bytes / MIB:.1f}",
        f"{moved.link_s * 1e3:.1f}",
        f"{pause * 1e3:.1f}",
        f"{low * 1e3:.1f}–{high * 1e3:.1f}",
        f"{pause / moved.link_s:.2f}",
        f"{moved.step_s * 1e3:.0f}",
        f"{(pause - moved.step_s) / moved.link_s:.2f}",
        f"{restart:.1f}",
        f"{restart / pause:.0f}",
    )


def move_and_save(topology: Topology, width: int, moves: int, file: str) -> Moves:
    """Train, move to and fro between the steps, and at last save a checkpoint as people do; on every worker."""
    executor = _executor(topology, width, None)
    executor.apply(_split(executor, BEFORE))
    executor.step(_batch(width))
    reports, steps = [], []
    # The first two moves are the first ever of their kind.
    for number in range(2 + moves):
        reports.append(executor.apply(_split(executor, BEFORE if number % 2 else AFTER)))
        executor.step(_batch(width))
        steps.append(executor.report.step_time_s if executor.report else 0.0)
    dist.barrier()
    saving_began = time.monotonic()
    state = {"model": executor.state_dict(), "optimizer": executor.optimizer_state_dict()}
    if executor.rank == 0:
        torch.save(state, file)
    return Moves(
        bytes=reports[-1].bytes,
        link_s=reports[-1].link_s,
        pauses_s=[report.pause_s for report in reports[2:]],
        step_s=float(np.median(steps)),
        profile=executor.profile,
        saving_began=saving_began,
    )


def start_again(topology: Topology, width: int, profile: Profile, file: str) -> float:
    """Start with the other split from the checkpoint; returns when the first step began (`time.monotonic`)."""
    executor = _executor(topology, width, profile)
    executor.apply(_split(executor, AFTER))
    state = torch.load(file, weights_only=True)
    executor.load_state_dict(state["model"], state["optimizer"])
    executor.step(_batch(width))
    return time.monotonic() - (executor.report.step_time_s if executor.report else 0.0)


def _executor(topology: Topology, width: int, profile: Profile | None) -> Executor:
    torch.manual_seed(0)
    layers = [layer for _ in range(LAYERS) for layer in (nn.Linear(width, width), nn.Tanh())]
    model = nn.Sequential(*layers)
    return Executor(
        model,
        optimizer=torch.optim.AdamW(model.parameters()),
        loss_fn=nn.MSELoss(),
        example_batch=_batch(width),
        topology=topology,
        microbatches=MICROBATCHES,
        profile=profile,
    )


def _batch(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(BATCH, width, generator=generator), torch.randn(BATCH, width, generator=generator)


def _split(executor: Executor, device_of_layer: tuple[int, ...]) -> Placement:
    """A placement by layers: every op is with the last layer that began before it."""
    layer = np.maximum(np.cumsum(executor.graph.parameter_bytes > 0) - 1, 0)
    return Placement(colocate(np.array(device_of_layer)[layer], executor.graph), MICROBATCHES)


if __name__ == "__main__":
    sys.exit(main())
