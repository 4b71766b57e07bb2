"""Models with what makes placement hard: branches, ties, buffers, random numbers, several results."""

import numpy as np
import torch
from torch import nn


class Branches(nn.Module):
    """Convolutions side by side with BatchNorm, in-place ReLU, concatenation and a shortcut with three readers."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.left = nn.Sequential(nn.Conv2d(6, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.right = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.join = nn.Conv2d(12, 6, 1)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = x + self.join(torch.cat([self.left(x), self.right(x)], 1)) + torch.sigmoid(x)
        return self.head(self.dropout(y.mean((2, 3))))


class TiedLanguageModel(nn.Module):
    """An embedding whose weight is also the output layer's, attention, and a split with three results."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.qkv = nn.Linear(8, 24, bias=False)
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        query, key, value = self.qkv(self.norm(x)).split(8, dim=-1)
        x = x + nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(x).flatten(0, 1)


class Frozen(nn.Module):
    """A frozen first layer, whose ops have no backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(7, 9)
        self.first.requires_grad_(False)
        self.second = nn.Linear(9, 9)
        self.third = nn.Linear(9, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.first(x))
        return self.third(torch.relu(self.second(x)) * x)


class RandomDag(nn.Module):
    """Linear layers and elementwise ops wired at random; every value is read by someone."""

    def __init__(self, seed: int, nodes: int = 9, width: int = 6):
        super().__init__()
        rng = np.random.default_rng(seed)
        self.sources = [sorted(set(rng.integers(0, i + 1, rng.integers(1, 4)).tolist())) for i in range(nodes)]
        self.kinds = rng.integers(0, 4, nodes).tolist()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(nodes))
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = [x]
        for sources, kind, layer in zip(self.sources, self.kinds, self.layers, strict=True):
            first = total = values[sources[0]]
            for other in sources[1:]:
                total = total + values[other]
            # The last reads one value twice with one op.
            results = torch.tanh(layer(total)), torch.sin(total), layer(total) * total, torch.sin(first * first + total)
            values.append(results[kind])
        return self.head(sum(values[1:], torch.zeros_like(x)))


def images(step: int, count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(count, 1, 6, 6, generator=generator), torch.randint(0, 5, (count,), generator=generator)


def vectors(step: int, count: int = 8, width: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(count, width, generator=generator), torch.randint(0, 5, (count,), generator=generator)


def tokens(step: int, count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    text = torch.randint(0, 11, (count, 5), generator=generator)
    return text, torch.randint(0, 11, (count, 5), generator=generator)


def token_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits, target.flatten())


class TextLoss(nn.Module):
    """A language model that takes a dict and returns its loss with a metric and with what is neither."""

    def __init__(self, longest: int = 100) -> None:
        super().__init__()
        self.model = TiedLanguageModel()
        self.longest = longest

    def forward(self, text: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.model(text)
        if text.shape[1] > self.longest:
            logits = torch.tanh(logits)
        correct = (logits.argmax(-1) == target.flatten()).float()
        return {"loss": token_loss(logits, target), "accuracy": correct.mean(), "logits": logits}


def text(step: int, count: int = 8, length: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "text": torch.randint(0, 11, (count, length), generator=generator),
        "target": torch.randint(0, 11, (count, length), generator=generator),
    }


def loss_and_accuracy(logits: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    loss = nn.functional.cross_entropy(logits, target)
    return {
        "loss": loss + 1e-2 * logits.square().mean(),
        "entropy": loss,
        "correct": (logits.argmax(-1) == target).float().mean(),
    }


def loss_and_mean(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return nn.functional.cross_entropy(logits, target), logits.mean()
