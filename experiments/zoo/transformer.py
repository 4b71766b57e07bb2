"""What the transformer families share: attention, the feed-forward part, the initial weights."""

import torch
import torch.nn.functional as F
from torch import nn


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al., "Attention Is All You Need", NeurIPS 2017).

    Args:
        width: features of a token, a multiple of `heads`.
        heads: number of heads.
        causal: whether a token sees only itself and those before it.
    """

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, T, width]` to the same."""
        # three of [N, heads, T, width / heads]
        query, key, value = self.query_key_value(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.output(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Sequential):
    """Two linear layers with a GELU between, token by token."""

    def __init__(self, width: int, hidden: int):
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


def draw_weights(model: nn.Module) -> None:
    """Normal weights of deviation 0.02 and zero biases, as GPT-2 and BERT begin; norms stay at one."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def token_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the targets that are not -100; logits `[N, T, vocabulary]`, targets `[N, T]`."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
