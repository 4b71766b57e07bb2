"""Trains a small GPT-2 of transformers on the bytes of a text, its operators spread over devices.

segue launch --topology emulated-2 experiments/examples/language_model.py --steps 60
torchrun --nproc-per-node 2 experiments/examples/language_model.py --steps 60
python experiments/examples/language_model.py --plain --steps 60      # the same loop in plain PyTorch
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from plain_training import PlainTraining
from transformers import GPT2Config, GPT2LMHeadModel

from segue.agent.pilot import Pilot
from segue.placement.executor import Executor, join, probe, topology_of_run

LENGTH, BATCH_SIZE, MICROBATCHES = 32, 16, 4


def pieces(text: bytes, steps: int, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Random pieces of a text as the keyword arguments of the model, `[N, T]` each; a byte is a token."""
    random = torch.Generator().manual_seed(seed)
    tokens = torch.from_numpy(np.frombuffer(text, np.uint8).astype(np.int64))
    for _ in range(steps):
        starts = torch.randint(len(tokens) - LENGTH, (BATCH_SIZE, 1), generator=random)
        piece = tokens[starts + torch.arange(LENGTH)]
        yield {"input_ids": piece, "attention_mask": torch.ones_like(piece), "labels": piece.clone()}


def main() -> None:
    """Train, let the agent move operators while training, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--topology", default="", help="a file or preset; by default what the launcher says")
    parser.add_argument("--plain", action="store_true", help="plain PyTorch in one process, without segue")
    parser.add_argument("--text", default=argparse.__file__, help="a text to learn (default: a module of Python's)")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    # The head is the token embedding once more. Without dropout, --plain can draw the same (that is, no) random numbers.
    config = GPT2Config(
        vocab_size=256, n_positions=LENGTH, n_embd=64, n_layer=4, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    config.use_cache = False
    model = GPT2LMHeadModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=10)
    loader = list(pieces(Path(options.text).read_bytes(), options.steps, options.seed))

    if options.plain:
        executor, pilot, training, shown = None, None, PlainTraining(model, optimizer, None, MICROBATCHES), True
    else:
        join()
        training = executor = Executor(
            model,
            optimizer=optimizer,
            example_batch=loader[0],  # without a loss_fn, the model returns its loss
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
    loss = training.eval(next(pieces(Path(options.text).read_bytes(), 1, options.seed + 1)))
    if shown:
        print(f"held out: loss {loss}")


if __name__ == "__main__":
    main()
