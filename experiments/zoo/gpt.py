"""A GPT-2-like decoder."""

import torch
from torch import nn

from .transformer import FeedForward, SelfAttention, draw_weights, token_loss


class Block(nn.Module):
    """Attention and feed-forward, each normed before and added to its input."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, causal=True)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, 4 * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, T, width]` to the same."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class GPT(nn.Module):
    """A decoder-only language model whose head is tied to its token embedding.

    After Radford et al., "Language Models are Unsupervised Multitask Learners", 2019 (GPT-2).

    Args:
        length: the longest sequence, in tokens.
        vocabulary: number of tokens.
        width: features of a token.
        layers: number of blocks.
        heads: attention heads of a block.
    """

    def __init__(self, length: int, vocabulary: int = 8192, width: int = 384, layers: int = 6, heads: int = 6):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.randn(length, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        draw_weights(self)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean cross-entropy of the next tokens; `tokens` and `targets` are `[N, T]`."""
        x = self.embedding(tokens) + self.position[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return token_loss(self.head(self.norm(x)), targets)
