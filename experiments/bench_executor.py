"""How fast the executor is, and how much memory it takes: `python -m segue.experiments.bench_executor [WHAT …]`.

    one-device   against plain PyTorch with the same microbatches, on one core
    pipelining   a linear chain on 2 and 4 ranks, against torch.distributed.pipelining (1F1B)
    naive        against accelerate's naive execution of its device_map, on emulated-4
    split        contiguous parts from measured costs against equal layers, on emulated-4-equal and emulated-4
    hidden       share of transfer time in which the receiver computes, on emulated-4
    memory       truly allocated peak of each device against the simulator's

Each compares things side by side in one run, in turns, and prints medians under the command that made them and the
machine's load before it began.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

from ..placement.errors import SegueError
from ..placement.executor import WorkerFailed
from ..placement.presets import preset
from . import bench_emulated, bench_memory, bench_one_device, bench_pipelining
from .measure import MeasureJob
from .tables import format_table

MODELS = ("inception", "resnet50", "gpt", "unet")
MEMORY_PLANNERS = ("equal-layers", "contiguous", "agent")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; returns the exit code."""
    options = _parser().parse_args(arguments)
    given = list(sys.argv[1:] if arguments is None else arguments)
    bench = Bench(options)
    for what in options.what or list(WHAT):
        print(f"$ python -m segue.experiments.bench_executor {' '.join(given)}    # {what}")
        print(f"load average before: {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
        try:
            print(WHAT[what](bench), end="\n\n", flush=True)
        except (SegueError, WorkerFailed) as error:
            print(f"bench_executor: error: {error}", file=sys.stderr)
            return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"any of {', '.join(WHAT)}; all of them by default")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--microbatches", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=32)
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 4], help="of the chains")
    parser.add_argument("--chains", nargs="+", default=["products", "naps"], choices=("products", "naps", "tiny"))
    parser.add_argument("--rounds", type=int, default=20, help="steps of each that count on real devices")
    parser.add_argument("--emulated-rounds", type=int, default=2, help="turns of each placement on emulated devices")
    parser.add_argument("--steps", type=int, default=3, help="steps that count in each such turn")
    parser.add_argument("--devices", type=int, default=2, help="workers for memory")
    parser.add_argument("--seed", type=int, default=0)
    return parser


class Bench:
    """The options of a call, and the emulated studies that several tables share."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.study = cache(self._study)

    def job(self, model: str) -> MeasureJob:
        """The job of one model on real devices."""
        options = self.options
        return MeasureJob(
            model,
            options.batch_size,
            options.microbatches,
            options.image_size,
            options.sequence_length,
            options.seed,
            rounds=options.rounds,
        )

    def _study(self, model: str, topology: str) -> bench_emulated.Study:
        job = replace(self.job(model), rounds=self.options.emulated_rounds, steps=self.options.steps)
        naive = topology == "emulated-4" and "naive" in (self.options.what or WHAT)
        return bench_emulated.study(job, preset(topology), with_naive=naive)


def one_device(bench: Bench) -> str:
    """The table of `one-device`."""
    rows = [bench_one_device.one_device_row(bench.job(model)) for model in bench.options.models]
    return format_table(rows, bench_one_device.HEADERS)


def pipelining(bench: Bench) -> str:
    """The tables of `pipelining`."""
    options = bench.options
    chains = [
        bench_pipelining.Chain(kind, ranks, options.microbatches, options.rounds)
        for kind in options.chains
        for ranks in options.ranks
    ]
    steps = format_table([bench_pipelining.chain_row(chain) for chain in chains], bench_pipelining.HEADERS)
    rows = [bench_pipelining.overhead_row(ranks, options.rounds) for ranks in options.ranks]
    overhead = format_table(rows, bench_pipelining.OVERHEAD_HEADERS)
    return f"{steps}\n\ntiny ops, overhead for each stage and microbatch\n{overhead}"


def naive(bench: Bench) -> str:
    """The table of `naive`."""
    rows = [bench_emulated.naive_row(bench.study(model, "emulated-4")) for model in bench.options.models]
    return format_table(rows, bench_emulated.NAIVE_HEADERS)


def split(bench: Bench) -> str:
    """The table of `split`."""
    studies = [
        bench.study(m, topology) for topology in ("emulated-4-equal", "emulated-4") for m in bench.options.models
    ]
    return format_table([bench_emulated.split_row(found) for found in studies], bench_emulated.SPLIT_HEADERS)


def hidden(bench: Bench) -> str:
    """The table of `hidden`."""
    studies = [bench.study(model, "emulated-4") for model in bench.options.models]
    rows = [row for found in studies for row in bench_emulated.hidden_rows(found)]
    return format_table(rows, bench_emulated.HIDDEN_HEADERS)


def memory(bench: Bench) -> str:
    """The tables of `memory`."""
    rows, holders = [], []
    for model in bench.options.models:
        peaks = bench_memory.measure_peaks(bench.job(model), bench.options.devices, MEMORY_PLANNERS)
        rows += bench_memory.memory_rows(model, peaks)
        holders += bench_memory.holder_rows(model, peaks)
    table = format_table(rows, bench_memory.HEADERS)
    return f"{table}\n\n{format_table(holders, bench_memory.HOLDER_HEADERS)}"


WHAT: dict[str, Callable[[Bench], str]] = {
    "one-device": one_device,
    "pipelining": pipelining,
    "naive": naive,
    "split": split,
    "hidden": hidden,
    "memory": memory,
}
"""What can be asked for."""


if __name__ == "__main__":
    sys.exit(main())
