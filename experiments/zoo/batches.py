"""Random batches for the zoo's models, drawn from torch's global generator; the first dimension is always the batch."""

from typing import Any

import torch

Batch = Any
CLASSES = 10


def classified_images(batch_size: int, channels: int, image_size: int) -> Batch:
    """Images `[N, channels, image_size, image_size]` and a class for each, `[N]`."""
    return torch.randn(batch_size, channels, image_size, image_size), torch.randint(0, CLASSES, (batch_size,))


def segmented_images(batch_size: int, channels: int, image_size: int) -> Batch:
    """Images `[N, channels, image_size, image_size]` and a class for each pixel, `[N, image_size, image_size]`."""
    images = torch.randn(batch_size, channels, image_size, image_size)
    return images, torch.randint(0, CLASSES, (batch_size, image_size, image_size))


def next_tokens(batch_size: int, length: int, vocabulary: int) -> Batch:
    """Tokens `[N, length]` and, as targets, the token behind each."""
    text = torch.randint(vocabulary, (batch_size, length + 1))
    return {"tokens": text[:, :-1].contiguous(), "targets": text[:, 1:].contiguous()}


def sentence_pairs(batch_size: int, length: int, vocabulary: int) -> Batch:
    """Source sentences, and target sentences with and without their last token, all `[N, length]`."""
    source = torch.randint(vocabulary, (batch_size, length))
    target = next_tokens(batch_size, length, vocabulary)
    return {"source": source, "previous": target["tokens"], "targets": target["targets"]}


def masked_tokens(tokens: torch.Tensor, mask: int | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens with about 15 % of each sequence replaced by `mask`, and the labels: those tokens, -100 elsewhere.

    Every sequence has the same number of masked tokens, so that the loss of a batch is the mean over its microbatches'.
    """
    count = max(1, round(0.15 * tokens.shape[1]))
    masked = torch.zeros(tokens.shape, dtype=torch.bool).scatter(1, torch.rand(tokens.shape).topk(count).indices, True)
    return tokens.masked_fill(masked, mask), tokens.masked_fill(~masked, -100)


def clicks(batch_size: int, dense: int, tables: dict[str, tuple[int, ...]]) -> Batch:
    """Numbers `[N, dense]` and, for each group, table rows `[N, features]`; the target is whether it was clicked, `[N]`."""
    inputs = {"dense": torch.randn(batch_size, dense)}
    for group, rows in tables.items():
        inputs[group] = torch.stack([torch.randint(count, (batch_size,)) for count in rows], dim=1)
    return inputs, torch.randint(0, 2, (batch_size,)).float()
