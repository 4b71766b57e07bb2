"""How true the simulator is: predicted against measured step times, `python -m segue.experiments.bench_truth`.

For each model and topology, placements that are good (planners'), manual, and random ones of several kinds are simulated and
then run on the executor in turn; each one's measured step time is the median over its turns. Prints a table (median and
90th percentile of the relative error, Spearman's rank correlation) and draws the scatter.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray
from scipy.stats import spearmanr

from ..placement.clock import SimulatedClock
from ..placement.coarsen import coarsen
from ..placement.costs import make_costs, microbatch_sizes
from ..placement.errors import SegueError
from ..placement.files import write_text
from ..placement.placement import colocate
from ..placement.planners import plan
from ..placement.topology import Topology
from .measure import MeasureJob, measure_placements
from .run_config import find_topology
from .tables import format_table
from .zoo.example import build_example

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# Samples a step and tokens a sample, so that a step of the slowest placement takes seconds, not minutes.
MODELS = {"inception": (32, 64), "resnet": (64, 64), "vgg": (64, 64), "unet": (8, 64), "gpt": (8, 16)}
TOPOLOGIES = ("emulated-4", "this-machine")
PLANNED = ("equal-layers", "equal-parameters", "equal-time", "round-robin", "contiguous", "heft", "local-search")
HEADERS = ("model", "topology", "clock", "placements", "steps (ms)", "median error", "90 % below", "bias", "Spearman")


def main(arguments: list[str] | None = None) -> int:
    """Run the study; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--topologies", nargs="+", default=list(TOPOLOGIES))
    parser.add_argument("--placements", type=int, default=30)
    parser.add_argument("--microbatches", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each placement, others in between")
    parser.add_argument("--steps", type=int, default=1, help="steps that count in each turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="", help="also write the points to this file")
    parser.add_argument("--points", nargs="+", default=[], help="show these files again instead of running anything")
    parser.add_argument("--picture", default="", help="draw the scatter into this .png or .svg")
    options = parser.parse_args(arguments)
    # As each worker has: threads that wait for each other would time the wait.
    torch.set_num_threads(1)
    studies = []
    try:
        for path in options.points:
            studies += json.loads(Path(path).read_text())
        for topology in () if options.points else options.topologies:
            for model in options.models:
                studies.append(study(model, topology, options))
                print(study_table(studies[-1:]), file=sys.stderr)
    except SegueError as error:
        print(f"bench_truth: error: {error}", file=sys.stderr)
        return 2
    print(study_table(studies))
    if options.json:
        write_text(options.json, json.dumps(studies, indent=1) + "\n")
    if options.picture:
        scatter(studies, options.picture)
    return 0


def study(model: str, topology_name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Predict and measure one model's placements on one topology.

    Returns:
        `model`, `topology`, `clock` (`emulated` or `measured`), `predicted_s` and `measured_s` (a list each).
    """
    batch_size, sequence_length = MODELS[model]
    job = MeasureJob(
        model,
        batch_size,
        options.microbatches,
        sequence_length=sequence_length,
        seed=options.seed,
        rounds=options.rounds,
        steps=options.steps,
    )
    topology = find_topology(topology_name)
    clock = _clock(job, topology)
    placements = draw_placements(clock, options.placements, options.seed)
    found = [m for m in measure_placements(job, topology, placements) if not m.reason]
    return {
        "model": model,
        "topology": topology_name,
        "clock": found[0].source,
        "predicted_s": [m.predicted_s for m in found],
        "measured_s": [m.median_s for m in found],
        "steps_s": [m.step_times_s for m in found],
    }


def _clock(job: MeasureJob, topology: Topology) -> SimulatedClock:
    """What placements are drawn with; the run measures its own op times, and predicts with those."""
    sizes = microbatch_sizes(job.batch_size, job.microbatches)
    example = build_example(job.model, sizes[0], seed=job.seed, sequence_length=job.sequence_length)
    program = example.capture()
    device = "cuda" if topology.devices[0].kind == "cuda" else "cpu"
    profile = example.measure(program, device)
    return SimulatedClock(program.graph, topology, make_costs(program.graph, topology, profile), sizes)


def draw_placements(clock: SimulatedClock, count: int, seed: int) -> list[Ints]:
    """Manual and planned placements, then cuts at random and modules put anywhere, all different.

    Not single devices: those set the devices' speeds (`calibrate`).
    """
    rng = np.random.default_rng(seed)
    devices, ops = clock.topology.num_devices, clock.graph.num_ops
    found = [plan(name, clock, seed=seed, evaluations=300).devices for name in PLANNED]
    different = {where.tobytes(): where for where in found if np.ptp(where)}
    groups = coarsen(clock.graph, 40).group_of
    while len(different) < count:
        if rng.random() < 0.7:
            cuts = np.sort(rng.choice(np.arange(1, ops), int(rng.integers(1, 2 * devices + 1)), replace=False))
            order = rng.integers(0, devices, len(cuts) + 1)
            where = order[np.searchsorted(cuts, np.arange(ops), side="right")]
        else:
            where = rng.integers(0, devices, groups.max() + 1)[groups]
        where = colocate(where.astype(np.int64), clock.graph)
        if not np.ptp(where):
            continue
        different.setdefault(where.tobytes(), where)
    return list(different.values())[:count]


def study_table(studies: Sequence[dict[str, Any]]) -> str:
    """One line for each model and topology."""
    lines = []
    for row in studies:
        predicted, measured = np.array(row["predicted_s"]), np.array(row["measured_s"])
        error = predicted / measured - 1
        lines.append(
            (
                row["model"],
                row["topology"],
                row["clock"],
                len(measured),
                f"{1e3 * measured.min():.0f} to {1e3 * measured.max():.0f}",
                f"{np.median(abs(error)):.1%}",
                f"{np.quantile(abs(error), 0.9):.1%}",
                f"{np.median(error):+.1%}",
                f"{_rank_correlation(predicted, measured):.3f}",
            )
        )
    return format_table(lines, HEADERS)


def _rank_correlation(predicted: Floats, measured: Floats) -> float:
    """Spearman's."""
    result: Any = spearmanr(predicted, measured)
    return result.statistic


def scatter(studies: Sequence[dict[str, Any]], path: str) -> None:
    """Predicted over measured step time, a panel for each clock."""
    clocks = list(dict.fromkeys(row["clock"] for row in studies))
    figure, panels = plt.subplots(1, len(clocks), figsize=(5 * len(clocks), 4.6), squeeze=False)
    for panel, clock in zip(panels[0], clocks, strict=True):
        mine = [row for row in studies if row["clock"] == clock]
        for row in mine:
            panel.scatter(
                1e3 * np.array(row["measured_s"]), 1e3 * np.array(row["predicted_s"]), s=14, label=row["model"]
            )
        ends = np.array([min(min(r["measured_s"]) for r in mine), max(max(r["measured_s"]) for r in mine)]) * 1e3
        panel.plot(ends, ends, color="grey", linewidth=0.8)
        panel.set(xscale="log", yscale="log")
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.set(xlabel=f"{clock} step time (ms)", ylabel="predicted (ms)")
        panel.set_title(f"{clock}: {', '.join(dict.fromkeys(row['topology'] for row in mine))}")
        panel.legend()
    figure.tight_layout()
    figure.savefig(Path(path), dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
