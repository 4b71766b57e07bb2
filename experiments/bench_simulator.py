"""How fast the simulator prices placements, and how that grows: `python -m segue.experiments.bench_simulator`.

Everything runs on one core. A search's placements are drawn as a search visits them: runs of consecutive ops with a few ops
moved, at most 16 stages; random ones put every op anywhere, which makes almost every op a stage. `--scaling` prints the
table of large graphs, each row in a process of its own, so that its peak memory is its own.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..placement.clock import SimulatedClock
from ..placement.costs import make_costs
from ..placement.graph import Graph, make_graph
from ..placement.max_load import MaxLoadClock
from ..placement.presets import preset
from ..placement.topology import Device, Topology, uniform_links
from .tables import format_table

Ints = NDArray[np.int64]
MICROBATCHES = 8
ROUNDS = 7
SCALES = [(n, d) for d in (4, 64, 1024) for n in (1_000, 10_000, 100_000)]


def main(arguments: list[str] | None = None) -> int:
    """Print placements a second, or the scaling table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scaling", action="store_true", help="time large graphs instead")
    parser.add_argument("--one", nargs=2, type=int, metavar=("OPS", "DEVICES"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(scale(options.one[0], options.one[1], options.seed)))
    elif options.scaling:
        print(scaling_table(options.seed))
    else:
        print(speed_table(options.seed))
    return 0


def speed_table(seed: int) -> str:
    """Placements a second, the median of several rounds."""
    rng = np.random.default_rng(seed)
    graph, topology = layered_graph(200, rng), preset("emulated-4")
    clock = SimulatedClock(graph, topology, make_costs(graph, topology), (8,) * MICROBATCHES)
    larger = layered_graph(300, rng)
    loads = MaxLoadClock(larger, topology, make_costs(larger, topology), (8,) * MICROBATCHES)
    visited = visited_placements(clock, rng, 300)
    scattered = [rng.integers(0, 4, 200) for _ in range(50)]
    anywhere = [rng.integers(0, 4, 300) for _ in range(1000)]
    rows = [
        ("step time, 200 ops, at most 16 stages", *rate(clock.evaluate, visited)),
        ("step time, 200 ops, random", *rate(clock.evaluate, scattered)),
        ("max-load, 300 ops, random", *rate(loads.evaluate, anywhere)),
    ]
    title = f"Placements a second on one core; 4 devices, {MICROBATCHES} microbatches."
    return f"{title}\n{format_table(rows, ('what', 'median', 'slowest round', 'fastest round'))}"


def rate(price: Callable[[Ints], Any], placements: list[Ints]) -> tuple[str, str, str]:
    """Placements a second: the median of some rounds, the slowest and the fastest."""
    price(placements[0])
    rounds = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        for devices in placements:
            price(devices)
        rounds.append(len(placements) / (time.perf_counter() - begin))
    return f"{statistics.median(rounds):,.0f}", f"{min(rounds):,.0f}", f"{max(rounds):,.0f}"


def visited_placements(clock: SimulatedClock, rng: np.random.Generator, count: int) -> list[Ints]:
    """Consecutive runs of ops with a short run moved, of at most 16 stages."""
    ops, found = clock.graph.num_ops, []
    while len(found) < count:
        cuts = np.sort(rng.choice(np.arange(1, ops), int(rng.integers(1, 9)), replace=False))
        devices = np.searchsorted(cuts, np.arange(ops), side="right") % clock.topology.num_devices
        first = int(rng.integers(0, ops - 10))
        devices[first : first + int(rng.integers(1, 10))] = rng.integers(0, clock.topology.num_devices)
        if len(clock.stages(devices).device) <= 16:
            found.append(devices)
    return found


def layered_graph(ops: int, rng: np.random.Generator) -> Graph:
    """A chain with skip connections, one for every second op."""
    edges = [(op - 1, op) for op in range(1, ops)]
    edges += [(int(rng.integers(max(0, op - 12), op)), op) for op in range(2, ops) if rng.random() < 0.5]
    return make_graph(
        f"layered-{ops}",
        sorted(set(edges)),
        ops,
        batch_size=8,
        requires_grad=np.ones(ops, bool),
        forward_flops=rng.uniform(1e7, 1e8, ops),
        backward_flops=rng.uniform(2e7, 2e8, ops),
        output_bytes=rng.uniform(1e4, 1e5, ops),
        saved_bytes=rng.uniform(1e4, 1e5, ops),
        parameter_bytes=rng.uniform(1e3, 1e5, ops),
    )


def scaling_table(seed: int) -> str:
    """Seconds and memory of one evaluation of large graphs on many devices, a process for each row."""
    rows = []
    for ops, devices in SCALES:
        command = [sys.executable, "-m", __spec__.name, "--one", str(ops), str(devices), "--seed", str(seed)]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        per_op = 1e6 * row["runs_s"] / ops, 1e6 * row["random_s"] / ops
        rows.append(
            (
                f"{ops:,}",
                f"{devices:,}",
                f"{row['runs_stages']:,}",
                f"{row['runs_s']:.4f}",
                f"{per_op[0]:.2f}",
                f"{row['random_stages']:,}",
                f"{row['random_s']:.4f}",
                f"{per_op[1]:.2f}",
                f"{row['setup_s']:.1f}",
                f"{row['peak_mib']:.0f}",
            )
        )
        print(f"{ops} ops, {devices} devices", file=sys.stderr)
    headers = ("ops", "devices", "stages", "s", "us/op", "stages", "s", "us/op", "set-up (s)", "peak MiB")
    title = f"One step with {MICROBATCHES} microbatches, runs of consecutive ops, then every op anywhere."
    return f"{title}\n{format_table(rows, headers)}"


def scale(ops: int, devices: int, seed: int) -> dict[str, float]:
    """Time one graph: a run of ops a device, and every op anywhere."""
    rng = np.random.default_rng(seed)
    begin = time.perf_counter()
    names = [f"d{i}" for i in range(devices)]
    topology = Topology("wide", tuple(Device(n, "emulated", 1e12) for n in names), uniform_links(names, 1e-5, 1e10))
    graph = layered_graph(ops, rng)
    clock = SimulatedClock(graph, topology, make_costs(graph, topology), (8,) * MICROBATCHES)
    setup = time.perf_counter() - begin
    result: dict[str, float] = {"setup_s": setup}
    for name, where in (("runs", np.arange(ops) * devices // ops), ("random", rng.integers(0, devices, ops))):
        clock.evaluate(where)
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            clock.evaluate(where)
            times.append(time.perf_counter() - begin)
        result[f"{name}_s"] = statistics.median(times)
        result[f"{name}_stages"] = len(clock.stages(where).device)
    result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return result


if __name__ == "__main__":
    sys.exit(main())
