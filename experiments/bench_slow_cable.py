"""A real link drops to a tenth while a model trains over two hosts: what the agent makes of it.

    sudo python -m segue.experiments.bench_slow_cable --seed 0 [--model resnet] [--json FILE]

The two hosts are network namespaces of this machine, joined by a cable that the kernel holds to 400 Mbit/s and later to 40
(needs root and iproute2). Each has one core. Nobody tells the agent: it sees the run's own messages. In the end the
same run trains under the placement it had before, and on one host alone, in turns with the placement that the agent chose.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from ..agent.pilot import Pilot
from ..placement.cores import usable_cores
from ..placement.executor import Executor, join, probe, topology_of_run
from ..placement.files import write_text
from ..placement.placement import Placement
from . import two_hosts
from .tables import format_table
from .two_hosts import BITS_PER_S, Hosts, torchrun
from .zoo.example import build_example

BATCH, MICROBATCHES = 32, 4
TENTH = 0.1
ROUNDS = 5
"""Turns in the end, of each placement."""
LIMIT_S = 900.0


def main(arguments: list[str] | None = None) -> int:
    """Run it and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet", help="as `segue profile` takes it")
    parser.add_argument("--before", type=int, default=100, help="steps before the cable is slow")
    parser.add_argument("--after", type=int, default=80, help="steps after it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="", help="also write every step and decision to this file")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        work(Path(options.worker), options.model, options.before, options.after, options.seed)
        return 0
    why_not = two_hosts.why_not()
    if why_not:
        print(f"bench_slow_cable: error: this machine cannot have two hosts: {why_not}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="segue-cable-") as folder:
        result = slow_cable(Path(folder), options.model, options.before, options.after, options.seed)
    print(table(result))
    if options.json:
        write_text(options.json, json.dumps(result, indent=1) + "\n")
    return 0


def slow_cable(folder: Path, model: str, before: int, after: int, seed: int) -> dict[str, Any]:
    """Train over two hosts whose cable drops to a tenth after `before` steps.

    Returns:
        `steps` (seconds of each), `losses`, `decisions`, and `turns`: name of a placement -> seconds of its steps.

    Raises:
        RuntimeError: if a worker fails or hangs.
    """
    sizes = ("--model", model, "--before", str(before), "--after", str(after), "--seed", str(seed))
    train_over_cable(
        folder, ["-m", "segue.experiments.bench_slow_cable", "--worker", str(folder), *sizes], before + after
    )
    return json.loads((folder / "result.json").read_text())


def train_over_cable(folder: Path, script: Sequence[str], steps: int) -> None:
    """Run a script, or a module, by torchrun on two hosts whose cable is slow from when `ask_for_slow_cable` is called.

    Args:
        folder: where the workers write to; a dot in the file `steps` for every step.
        script: what stands behind `python`.
        steps: until the progress bar is full.

    Raises:
        RuntimeError: if a worker fails or hangs, with the end of what the workers printed.
    """
    with two_hosts.two_hosts() as hosts:
        logs = [folder / f"log-{host}" for host in (0, 1)]
        processes = [hosts.start(host, [*torchrun(host, 29541), *script], {}, logs[host]) for host in (0, 1)]
        try:
            _watch(hosts, processes, folder, steps)
        except RuntimeError as error:
            raise RuntimeError(f"{error}:\n" + "\n".join(log.read_text()[-2000:] for log in logs)) from None


def _watch(hosts: Hosts, processes: list["subprocess.Popen[bytes]"], folder: Path, steps: int) -> None:
    deadline = time.monotonic() + LIMIT_S
    with tqdm(total=steps, desc="steps", disable=None) as bar:
        while any(process.poll() is None for process in processes):
            if any(process.poll() for process in processes):
                raise RuntimeError("a worker failed")
            if time.monotonic() > deadline:
                raise RuntimeError(f"not done after {LIMIT_S:.0f} s")
            # A worker waits for it between two steps.
            if (folder / "slow").exists() and not (folder / "slowed").exists():
                hosts.limit(BITS_PER_S * TENTH)
                (folder / "slowed").touch()
            done = folder / "steps"
            bar.update((done.stat().st_size if done.exists() else 0) - bar.n)
            time.sleep(0.05)
    if any(process.returncode for process in processes):
        raise RuntimeError("a worker failed")


def work(folder: Path, model: str, before: int, after: int, seed: int) -> None:
    """What each worker does."""
    join(timeout_s=LIMIT_S)
    os.sched_setaffinity(0, {usable_cores()[dist.get_rank() % len(usable_cores())]})
    torch.set_num_threads(1)
    example = build_example(model, BATCH, seed=seed)
    executor = Executor(
        example.step.model,
        optimizer=torch.optim.AdamW(example.step.model.parameters()),
        loss_fn=example.step.loss_fn,
        example_batch=example.batch,
        topology=probe(topology_of_run()),
        microbatches=MICROBATCHES,
        seed=seed,
    )
    pilot = Pilot(executor, before + after)
    pilot.place()
    steps, losses, split = [], [], executor.placement
    for step in range(before + after):
        if step == before:
            split = executor.placement
            ask_for_slow_cable(folder, executor.rank)
        losses.append(executor.step(example.batch))
        if executor.rank == 0:
            steps.append(_step_time_s(executor))
            with (folder / "steps").open("a") as file:
                file.write(".")
        pilot.after_step()
    alone = Placement(np.zeros_like(split.devices), MICROBATCHES)
    turns = _take_turns(executor, example.batch, {"unanswered": split, "agent": executor.placement, "one host": alone})
    if executor.rank == 0:
        result = {
            "steps": steps,
            "before": before,
            "losses": losses,
            "turns": turns,
            "decisions": [decision.to_record() for decision in pilot.log],
            "links": [link.bandwidth_bytes_per_s for link in executor.topology.links],
        }
        (folder / "result.json").write_text(json.dumps(result))
    pilot.close()


def ask_for_slow_cable(folder: Path, rank: int) -> None:
    """Have the cable made slow, between two steps; every worker calls it."""
    if rank == 0:
        (folder / "slow").touch()
        while not (folder / "slowed").exists():
            time.sleep(0.01)
    dist.barrier()


def _take_turns(executor: Executor, batch: Any, placements: dict[str, Placement]) -> dict[str, list[float]]:
    """Two steps under each placement in every turn, of which the second counts."""
    times: dict[str, list[float]] = {name: [] for name in placements}
    for _ in range(ROUNDS):
        for name, placement in placements.items():
            executor.apply(placement)
            for _ in range(2):
                executor.step(batch)
            times[name].append(_step_time_s(executor))
    return times


def _step_time_s(executor: Executor) -> float:
    return executor.report.step_time_s if executor.report else float("nan")


def table(result: dict[str, Any]) -> str:
    """What happened, and the turns."""
    before, steps = result["before"], np.array(result["steps"])
    turns = {name: float(np.median(times)) for name, times in result["turns"].items()}
    rows = [
        ["before, as the agent had it", f"{1e3 * np.median(steps[before - 10 : before]):.0f}", ""],
        *(
            [f"slow cable, {name}", f"{1e3 * seconds:.0f}", f"{seconds / turns['unanswered'] - 1:+.0%}"]
            for name, seconds in turns.items()
        ),
    ]
    answered = [d for d in result["decisions"] if d["step"] > before and d["action"] == "move"]
    said = [f"step {d['step']}: {d['action']}: {d['why']}" for d in result["decisions"]]
    first = f"moved {answered[0]['step'] - before} steps after the drop" if answered else "did not move"
    return "\n".join(
        [format_table(rows, ("placement", "step (ms)", "to unanswered")), "", f"The agent {first}.", *said]
    )


if __name__ == "__main__":
    raise SystemExit(main())
