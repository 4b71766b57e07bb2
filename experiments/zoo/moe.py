"""A decoder whose feed-forward parts are mixtures of experts."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from .transformer import FeedForward, SelfAttention, draw_weights, token_loss


class MixtureOfExperts(nn.Module):
    """Each token goes to its `chosen` best experts, as far as these have room.

    Dispatch is dense, by products with zero-one masks, so that no shape depends on what the router decides. An expert
    takes `capacity` tokens of a sequence; what finds no room passes by on the residual path. Sequences are routed one by
    one, so that the result of a sample does not depend on the others in its microbatch.

    After Lepikhin et al., "GShard: Scaling Giant Models with Conditional Computation and Automatic Sharding", ICLR 2021,
    and, for the balance loss, Fedus et al., "Switch Transformers", JMLR 2022. The experts are modules of their own (not
    slices of one tensor), so that they can be placed one by one.

    Args:
        width: features of a token.
        hidden: features inside an expert.
        length: tokens of a sequence.
        experts: number of experts.
        chosen: experts a token goes to.
        spare: an expert's room over an equal share of the tokens.
    """

    def __init__(self, width: int, hidden: int, length: int, experts: int, chosen: int, spare: float = 1.25):
        super().__init__()
        self.chosen = chosen
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(FeedForward(width, hidden) for _ in range(experts))
        capacity = math.ceil(spare * chosen * length / experts)
        self.expert_index: torch.Tensor
        self.slot_index: torch.Tensor
        self.register_buffer("expert_index", torch.arange(experts))
        self.register_buffer("slot_index", torch.arange(capacity))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`[N, T, width]` to the same, and the balance loss, a scalar."""
        gates = F.softmax(self.router(x), dim=-1)  # [N, T, experts]
        weight, choice = gates.topk(self.chosen, dim=-1)  # [N, T, chosen]
        weight = weight / weight.sum(-1, keepdim=True)
        picked = (choice.unsqueeze(-1) == self.expert_index).to(x.dtype)  # [N, T, chosen, experts]
        slots = self._slots(picked)  # [N, T, chosen, experts, capacity]
        dispatch = slots.sum(2).flatten(2)  # [N, T, experts * capacity]
        combine = (slots * weight[..., None, None]).sum(2).flatten(2)
        arrived = dispatch.transpose(1, 2) @ x  # [N, experts * capacity, width]
        parts = arrived.chunk(len(self.experts), dim=1)
        outputs = [expert(part) for expert, part in zip(self.experts, parts, strict=True)]
        share = picked[:, :, 0].mean(1)  # of the tokens that like an expert best: [N, experts]
        balance = (share * gates.mean(1)).sum(-1).mean() * len(self.experts)
        return combine @ torch.cat(outputs, dim=1), balance

    def _slots(self, picked: torch.Tensor) -> torch.Tensor:
        """One at the slot that a token gets at an expert, all zeros where that is full; first choices go first."""
        ranked = picked.transpose(1, 2).flatten(1, 2)  # [N, chosen * T, experts]
        position = (ranked.cumsum(1) - ranked).unflatten(1, (self.chosen, -1)).transpose(1, 2)
        return picked.unsqueeze(-1) * (position.unsqueeze(-1) == self.slot_index)


class Block(nn.Module):
    """Attention and a mixture of experts, each normed before and added to its input."""

    def __init__(self, width: int, heads: int, length: int, experts: int, chosen: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, causal=True)
        self.mixture_norm = nn.LayerNorm(width)
        self.mixture = MixtureOfExperts(width, 2 * width, length, experts, chosen)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`[N, T, width]` to the same, and the balance loss, a scalar."""
        x = x + self.attention(self.attention_norm(x))
        mixed, balance = self.mixture(self.mixture_norm(x))
        return x + mixed, balance


class MoE(nn.Module):
    """A decoder-only language model with experts in every block.

    Args:
        length: tokens of a sequence.
        vocabulary: number of tokens.
        width: features of a token.
        layers: number of blocks.
        heads: attention heads of a block.
        experts: experts of a block.
        chosen: experts a token goes to.
        balance_weight: of the balance losses beside the cross-entropy.
    """

    def __init__(
        self,
        length: int,
        vocabulary: int = 8192,
        width: int = 256,
        layers: int = 4,
        heads: int = 4,
        experts: int = 8,
        chosen: int = 2,
        balance_weight: float = 0.01,
    ):
        super().__init__()
        self.balance_weight = balance_weight
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.randn(length, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, length, experts, chosen) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        draw_weights(self)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean cross-entropy of the next tokens and the weighted balance losses; arguments are `[N, T]`."""
        x = self.embedding(tokens) + self.position
        balances = []
        for block in self.blocks:
            x, balance = block(x)
            balances.append(balance)
        return token_loss(self.head(self.norm(x)), targets) + self.balance_weight * torch.stack(balances).sum()
