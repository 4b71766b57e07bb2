"""The agent on a graph of 100,000 ops and 512 unequal devices: `python -m segue.experiments.bench_large`.

The graph is `bench_simulator`'s chain with skip connections; the devices' speeds are drawn between 1 and 4. Beside the agent
stand the two manual configurations that people would write down. One core is used.
"""

import argparse
import resource
import sys
import time

import numpy as np

from ..placement.clock import SimulatedClock
from ..placement.costs import make_costs
from ..placement.topology import Device, Topology, uniform_links
from .bench_simulator import MICROBATCHES, layered_graph
from .solve import AGENT, solve
from .tables import format_table

SLOWEST, FASTEST = 1.0, 4.0
CONTENDERS = ("equal-layers", "speed-proportional", AGENT)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", type=int, default=100_000)
    parser.add_argument("--devices", type=int, default=512)
    parser.add_argument("--evaluations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    begin = time.perf_counter()
    clock = large_clock(options.ops, options.devices, options.seed)
    print(f"{options.ops:,} ops on {options.devices} devices; set up in {time.perf_counter() - begin:.1f} s")
    rows = []
    for name in CONTENDERS:
        wall, processor = time.perf_counter(), time.process_time()
        found = solve(name, clock, seed=options.seed, evaluations=options.evaluations)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        used = len(np.unique(found.devices))
        rows.append(
            (name, f"{found.value_s:.1f}", f"{used}", f"{found.evaluations}", f"{processor:.1f}", f"{wall:.1f}")
        )
    print(format_table(rows, ("contender", "step (s)", "devices", "evaluations", "processor (s)", "wall (s)")))
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")
    return 0


def large_clock(ops: int, devices: int, seed: int) -> SimulatedClock:
    """A clock of a layered graph on devices whose speeds differ."""
    rng = np.random.default_rng(seed)
    names = [f"d{i}" for i in range(devices)]
    unequal = tuple(Device(name, "emulated", 1e12, float(rng.uniform(SLOWEST, FASTEST))) for name in names)
    topology = Topology("unequal", unequal, uniform_links(names, 1e-5, 1e10))
    graph = layered_graph(ops, rng)
    return SimulatedClock(graph, topology, make_costs(graph, topology), (8,) * MICROBATCHES)


if __name__ == "__main__":
    sys.exit(main())
