"""What the workers of the tests with several hosts do; run as a file, also by torchrun.

Worker 0 writes the topology to the folder, as found and as probed, and every worker its losses as they come.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from segue.placement.executor import join, probe, topology_of_run
from tests.placement.executor import jobs


def main(folder: Path, steps: int, timeout_s: float, probing: bool) -> None:
    """Train with ops on both hosts, over links that have been probed or are assumed."""
    join(timeout_s=timeout_s)
    torch.set_num_threads(1)
    topology = topology_of_run()
    measured = probe(topology) if probing else topology
    executor = jobs.make_executor("branches", measured)
    rng = np.random.default_rng(0)
    if executor.rank == 0:
        topology.save(folder / "topology.json")
        measured.save(folder / "measured.json")
    with (folder / f"losses-{executor.rank}").open("w") as file:
        for step in range(steps):
            if step % 3 == 0:
                executor.apply(jobs.random_placement(executor, rng))
            file.write(json.dumps(executor.step(jobs.batch_of("branches", step))) + "\n")
            file.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:] == ["probe"])
