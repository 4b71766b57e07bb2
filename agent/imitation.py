"""Imitation: the network learns what the teacher says of states, a chunk of fresh scenarios at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .network import PlacementNetwork
from .teacher import Ints, Rng, Sample, TeacherSettings


@dataclass(frozen=True)
class ImitationSettings:
    """How long the network imitates, and how.

    Attributes:
        chunks: chunks of scenarios in all; 0 for none.
        scenarios: in each chunk.
        epochs: passes over a chunk.
        batch_size: states in a minibatch.
        learning_rate: at the start; falls to a fiftieth along half a cosine.
        max_groups: sizes that graphs are coarsened to, one drawn for each scenario.
        own_states: states of each scenario that the network's own moves lead to (as in DAgger, Ross et al., AISTATS 2011).
        teacher: what the teacher does.
    """

    chunks: int = 24
    scenarios: int = 128
    epochs: int = 4
    batch_size: int = 64
    learning_rate: float = 2e-3
    max_groups: tuple[int, ...] = (16, 24, 32, 48, 64)
    own_states: int = 4
    teacher: TeacherSettings = TeacherSettings()  # noqa: RUF009  (frozen)


def imitate_chunk(
    network: PlacementNetwork,
    optimizer: torch.optim.Optimizer,
    samples: Sequence[Sample],
    settings: ImitationSettings,
    seed: int,
    index: int,
) -> dict[str, float]:
    """Learn from what one chunk of scenarios teaches; the same arguments change the weights in the same way.

    On a GPU their last digits may differ.

    Returns:
        Mean losses over the first pass, before each batch was learned from: `choice` (cross-entropy to the teacher's
        choice, less its entropy), `change` and `value` (mean absolute errors).
    """
    rng = np.random.default_rng((seed, index))
    rate = settings.learning_rate * float(0.02 + 0.49 * (1 + np.cos(np.pi * index / settings.chunks)))
    for group in optimizer.param_groups:
        group["lr"] = rate
    network.train()
    first: list[dict[str, float]] = []
    for epoch in range(settings.epochs):
        for rows in _batches([len(sample.observation["groups"]) for sample in samples], settings.batch_size, rng):
            loss, parts = imitation_loss(network, [samples[row] for row in rows])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            if epoch == 0:
                first.append(parts)
    network.eval()
    return {key: float(np.mean([parts[key] for parts in first])) for key in first[0]}


def _batches(sizes: Sequence[int], batch_size: int, rng: Rng) -> list[Ints]:
    """Rows of states of similar size, in random order."""
    order = np.argsort(np.array(sizes) + rng.uniform(0, 4, len(sizes)), kind="stable")
    batches = [order[row : row + batch_size] for row in range(0, len(order), batch_size)]
    return [batches[place] for place in rng.permutation(len(batches))]


def imitation_loss(network: PlacementNetwork, samples: Sequence[Sample]) -> tuple[Tensor, dict[str, float]]:
    """Loss of a batch, and its parts as numbers."""
    where = next(network.parameters()).device

    def padded(arrays: Sequence[np.ndarray]) -> Tensor:
        return _padded(arrays).to(where)

    obs = {key: padded([sample.observation[key] for sample in samples]) for key in samples[0].observation}
    moves = padded([sample.moves for sample in samples])
    units = padded([sample.units for sample in samples]).float()
    devices = padded([sample.devices for sample in samples])
    change, target = padded([sample.change for sample in samples]), padded([sample.target for sample in samples])
    real = padded([np.ones(len(sample.devices), np.float32) for sample in samples])
    value = torch.tensor([sample.value for sample in samples], device=where)
    scores = network.score_some(network.encode(obs), units, devices, moves)
    logits = torch.cat([scores.stop.unsqueeze(1), scores.logits.masked_fill(real == 0, -1e9)], dim=1)
    entropy = -(target * target.clamp(min=1e-9).log()).sum(1).mean()
    choice = -(target * F.log_softmax(logits, dim=1)).sum(1).mean() - entropy
    wrong = F.smooth_l1_loss(scores.change, change, reduction="none", beta=0.05)
    changes = ((wrong * real).sum(1) / real.sum(1)).mean()
    values = F.smooth_l1_loss(scores.value, value, beta=0.1)
    parts = {
        "choice": choice.item(),
        "change": float((((scores.change - change).abs() * real).sum() / real.sum()).item()),
        "value": float((scores.value - value).abs().mean().item()),
    }
    return choice + 2.0 * changes + 0.5 * values, parts


def _padded(arrays: Sequence[np.ndarray]) -> Tensor:
    """Stacked arrays, zero where one is smaller than the largest."""
    shape = np.max([array.shape for array in arrays], axis=0)
    result = np.zeros((len(arrays), *shape), arrays[0].dtype)
    for row, array in enumerate(arrays):
        result[(row, *(slice(size) for size in array.shape))] = array
    return torch.from_numpy(result)
