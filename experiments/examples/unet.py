"""Trains a U-Net to segment discs and squares, its operators spread over devices.

segue launch --topology emulated-2 experiments/examples/unet.py --steps 60
torchrun --nproc-per-node 2 experiments/examples/unet.py --steps 60
python experiments/examples/unet.py --plain --steps 60      # the same loop in plain PyTorch
"""

import argparse
from collections.abc import Iterator

import torch
from plain_training import PlainTraining
from torch import nn

from segue.agent.pilot import Pilot
from segue.experiments.zoo.unet import UNet
from segue.placement.executor import Executor, join, probe, topology_of_run

IMAGE_SIZE, BATCH_SIZE, MICROBATCHES = 32, 8, 2
BACKGROUND, DISC, SQUARE = range(3)


def shapes(steps: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Noisy images with a disc and a square, `[N, 1, H, W]`, and the class of each pixel, `[N, H, W]`."""
    random = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(IMAGE_SIZE), torch.arange(IMAGE_SIZE), indexing="ij")
    for _ in range(steps):
        centres = torch.randint(6, IMAGE_SIZE - 6, (BATCH_SIZE, 2, 2, 1, 1), generator=random)
        down, across = (y - centres[:, :, 0]).abs(), (x - centres[:, :, 1]).abs()
        target = torch.full((BATCH_SIZE, IMAGE_SIZE, IMAGE_SIZE), BACKGROUND)
        target[(down[:, 0] ** 2 + across[:, 0] ** 2) < 25] = DISC
        target[torch.maximum(down[:, 1], across[:, 1]) < 5] = SQUARE
        noise = torch.randn(target.shape, generator=random)
        yield ((target != BACKGROUND) + 0.3 * noise)[:, None], target


def main() -> None:
    """Train, let the agent move operators while training, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--topology", default="", help="a file or preset; by default what the launcher says")
    parser.add_argument("--plain", action="store_true", help="plain PyTorch in one process, without segue")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    model = UNet(channels=1, classes=3, width=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=20, gamma=0.5)
    loss_fn = nn.CrossEntropyLoss()
    loader = list(shapes(options.steps, options.seed))

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
        # What is better than everything on the first device; later the agent goes by what it measures.
        pilot = Pilot(executor, options.steps)
        moved = pilot.place()
        if shown and moved:
            print(moved)

    for step, batch in enumerate(loader):
        loss = training.step(batch)
        scheduler.step()
        if shown:
            print(f"step {step}: loss {loss}")
        moved = pilot.after_step() if pilot else None
        if shown and moved:
            print(moved)
    loss = training.eval(next(shapes(1, options.seed + 1)))
    if shown:
        print(f"held out: loss {loss}")


if __name__ == "__main__":
    main()
