"""What the workers of the test with a slow cable do; run as a file by torchrun.

Worker 0 writes to the folder what its beliefs say of the steps over the fast cable and over the slow one, and the losses.
"""

import json
import sys
from pathlib import Path

import torch

from segue.agent.beliefs import Beliefs
from segue.experiments.bench_slow_cable import ask_for_slow_cable
from segue.experiments.zoo.example import build_example
from segue.placement.executor import Executor, join, probe, topology_of_run
from segue.placement.placement import Placement
from segue.placement.planners import plan
from segue.placement.training_step import TrainingStep

BATCH, MICROBATCHES, STEPS = 32, 4, 6
DRIFT = 0.25


def example() -> tuple[TrainingStep, tuple[torch.Tensor, torch.Tensor]]:
    """A model and a batch, in double precision: its rounding is not what a comparison of losses is to see."""
    found = build_example("resnet", BATCH)
    inputs, target = found.batch
    return found.step.double(), (inputs.double(), target)


def main(folder: Path) -> None:
    """Some steps over the cable as it was probed, some after somebody has made it slow."""
    join(timeout_s=120.0)
    torch.set_num_threads(1)
    step, batch = example()
    model = step.model
    executor = Executor(
        model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1e-2),
        loss_fn=step.loss_fn,
        example_batch=batch,
        topology=probe(topology_of_run()),
        microbatches=MICROBATCHES,
    )
    clock = executor.clock()
    placement = Placement(plan("equal-layers", clock).devices, MICROBATCHES)
    executor.apply(placement)
    beliefs = Beliefs(executor.graph, executor.topology, executor.profile, clock.sizes)
    found: dict[str, list] = {"drift": [], "pace": [beliefs.clock.topology.seconds_per_byte[0, 1]], "losses": []}
    for cable in ("fast", "slow"):
        if cable == "slow":
            ask_for_slow_cable(folder, executor.rank)
        for _ in range(STEPS):
            found["losses"].append(executor.step(batch))
            if executor.report is not None:
                beliefs.observe(placement, executor.report)
        found["drift"].append(beliefs.drift(DRIFT))
        beliefs.correct()
        found["pace"].append(beliefs.clock.topology.seconds_per_byte[0, 1])
    if executor.rank == 0:
        (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
