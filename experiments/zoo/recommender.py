"""A recommender with a tower for each group of features."""

import itertools
from collections.abc import Sequence

import torch
from torch import nn

TABLES = {
    "user": (200_000, 20_000, 2_000, 200, 50, 10),
    "item": (100_000, 50_000, 5_000, 500, 100, 20),
    "context": (1_000, 365, 50, 24, 7, 4),
}
"""Group of categorical features -> how many values each of its features has."""


def _mlp(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class Tower(nn.Module):
    """The embedding tables of one group of features, and the group's summary by an MLP."""

    def __init__(self, rows: Sequence[int], width: int):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(count, width) for count in rows)
        self.summary = _mlp((len(rows) * width, 128, width))

    def forward(self, features: torch.Tensor) -> list[torch.Tensor]:
        """`[N, features]` to an embedding for each feature and the summary, each `[N, width]`."""
        embeddings = [table(features[:, column]) for column, table in enumerate(self.tables)]
        return [*embeddings, self.summary(torch.cat(embeddings, dim=1))]


class Recommender(nn.Module):
    """Click prediction: towers side by side, dot products of all pairs of their vectors, an MLP on top.

    After Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems", 2019 (DLRM),
    with a summary for each group of features beside the single embeddings.

    Args:
        dense: number of numerical features.
        tables: group -> number of values of each of its features.
        width: features of an embedding.
    """

    def __init__(self, dense: int = 13, tables: dict[str, tuple[int, ...]] = TABLES, width: int = 32):
        super().__init__()
        self.bottom = _mlp((dense, 256, 64, width))
        self.towers = nn.ModuleDict({group: Tower(rows, width) for group, rows in tables.items()})
        vectors = 1 + sum(len(rows) + 1 for rows in tables.values())
        first, second = torch.tril_indices(vectors, vectors, -1)
        self.pairs: torch.Tensor
        self.register_buffer("pairs", first * vectors + second)
        self.top = nn.Sequential(*_mlp((width + vectors * (vectors - 1) // 2, 256, 64)), nn.Linear(64, 1))

    def forward(self, dense: torch.Tensor, **groups: torch.Tensor) -> torch.Tensor:
        """`[N, dense]` numbers and, for each group, `[N, features]` indices to logits `[N]`."""
        summary = self.bottom(dense)
        vectors = [summary]
        for group, tower in self.towers.items():
            vectors += tower(groups[group])
        stacked = torch.stack(vectors, dim=1)  # [N, vectors, width]
        products = (stacked @ stacked.transpose(1, 2)).flatten(1).index_select(1, self.pairs)
        return self.top(torch.cat([summary, products], dim=1)).squeeze(1)
