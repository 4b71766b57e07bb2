"""Trains a small Inception-like classifier on scanned digits, its operators spread over devices.

segue launch --topology emulated-2 experiments/examples/image_classifier.py --steps 60
torchrun --nproc-per-node 2 experiments/examples/image_classifier.py --steps 60
python experiments/examples/image_classifier.py --plain --steps 60      # the same loop in plain PyTorch

With checkpoints, a run that was stopped goes on where it was, on whatever devices there are; with --elastic by itself:

segue launch --elastic experiments/examples/image_classifier.py --steps 600 --checkpoints runs/digits
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from plain_training import PlainTraining
from torch import nn

from segue.agent.pilot import Pilot
from segue.experiments.data import batches, load_data
from segue.experiments.models import build_model
from segue.placement.executor import Executor, join, probe, topology_of_run
from segue.placement.executor.checkpoint import load_checkpoint, save_checkpoint

IMAGE_SIZE, BATCH_SIZE, MICROBATCHES = 16, 32, 4
HELD_OUT = 297
SAVE_EVERY = 5


def main() -> None:
    """Train, let the agent move operators while training, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--topology", default="", help="a file or preset; by default what the launcher says")
    parser.add_argument("--checkpoints", default="", metavar="FOLDER", help="save there, and go on from what is there")
    parser.add_argument("--plain", action="store_true", help="plain PyTorch in one process, without segue")
    options = parser.parse_args()

    data = load_data("digits", IMAGE_SIZE)
    model = build_model("inception", IMAGE_SIZE, data.channels, data.classes, options.seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    loss_fn = nn.CrossEntropyLoss()
    trained_on = replace(data, images=data.images[:-HELD_OUT], labels=data.labels[:-HELD_OUT])
    loader = list(batches(trained_on, BATCH_SIZE, options.seed, options.steps))
    held_out = data.images[-HELD_OUT:], data.labels[-HELD_OUT:]
    first = 0

    if options.plain:
        executor, pilot, training, shown = None, None, PlainTraining(model, optimizer, loss_fn, MICROBATCHES), True
    else:
        join()
        training = executor = Executor(
            model,
            optimizer=optimizer,
            loss_fn=loss_fn,
            example_batch=loader[0],
            topology=probe(topology_of_run(options.topology)),
            microbatches=MICROBATCHES,
            seed=options.seed,
        )
        shown = executor.rank == 0
        if options.checkpoints and (Path(options.checkpoints) / "latest").exists():
            saved = load_checkpoint(executor, options.checkpoints)
            first = saved.step
            scheduler.load_state_dict(saved.extra)
        # What is better than everything on the first device; later the agent goes by what it measures.
        pilot = Pilot(executor, options.steps)
        moved = pilot.place()
        if shown and moved:
            print(moved)

    for step, batch in enumerate(loader[first:], first):
        loss = training.step(batch)
        scheduler.step()
        if shown:
            print(f"step {step}: loss {loss}")
        moved = pilot.after_step() if pilot else None
        if shown and moved:
            print(moved)
        if executor is not None and options.checkpoints and (step + 1) % SAVE_EVERY == 0:
            save_checkpoint(executor, options.checkpoints, scheduler.state_dict())
    loss = training.eval(held_out)
    if shown:
        print(f"held out: loss {loss}")


if __name__ == "__main__":
    main()
