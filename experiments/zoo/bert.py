"""A BERT-like encoder."""

import torch
from torch import nn

from .transformer import FeedForward, SelfAttention, draw_weights, token_loss


class Block(nn.Module):
    """Attention and feed-forward, each added to its input and normed after."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention = SelfAttention(width, heads, causal=False)
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, 4 * width)
        self.feed_forward_norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, T, width]` to the same."""
        x = self.attention_norm(x + self.attention(x))
        return self.feed_forward_norm(x + self.feed_forward(x))


class BERT(nn.Module):
    """An encoder with a masked-language-model head, without segments and next-sentence prediction.

    After Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", NAACL 2019.

    Args:
        length: the longest sequence, in tokens.
        vocabulary: number of tokens; token 0 is the mask.
        width: features of a token.
        layers: number of blocks.
        heads: attention heads of a block.
    """

    def __init__(self, length: int, vocabulary: int = 8192, width: int = 384, layers: int = 6, heads: int = 6):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.randn(length, width) * 0.02)
        self.embedding_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.head = nn.Linear(width, vocabulary)
        draw_weights(self)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean cross-entropy of the masked tokens.

        Args:
            tokens: `[N, T]`, some of them replaced by the mask.
            targets: `[N, T]`, the token that stood there, or -100 where none was replaced.
        """
        x = self.embedding_norm(self.embedding(tokens) + self.position[: tokens.shape[1]])
        for block in self.blocks:
            x = block(x)
        return token_loss(self.head(self.transform(x)), targets)
