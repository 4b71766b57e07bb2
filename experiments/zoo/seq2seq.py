"""An LSTM encoder and decoder with attention."""

import torch
from torch import nn

from .transformer import token_loss


class Encoder(nn.Module):
    """Token embedding and a stack of LSTM layers."""

    def __init__(self, vocabulary: int, width: int, layers: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        # A module a layer rather than one of several layers: the layers can then be on different devices.
        self.layers = nn.ModuleList(nn.LSTM(width, width, batch_first=True) for _ in range(layers))

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        """`[N, S]` to the top layer's outputs `[N, S, width]` and every layer's last state."""
        x, states = self.embedding(tokens), []
        for layer in self.layers:
            x, state = layer(x)
            states.append(state)
        return x, states


class Attention(nn.Module):
    """Global attention of the decoder over the encoder's outputs with a bilinear score."""

    def __init__(self, width: int):
        super().__init__()
        self.score = nn.Linear(width, width, bias=False)
        self.mix = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """`[N, T, width]` and `[N, S, width]` to `[N, T, width]`."""
        weights = torch.softmax(self.score(x) @ memory.transpose(1, 2), dim=-1)  # [N, T, S]
        return torch.tanh(self.mix(torch.cat([weights @ memory, x], dim=-1)))


class Seq2Seq(nn.Module):
    """A translation model: every decoder layer begins in the last state of its encoder layer.

    After Sutskever et al., "Sequence to Sequence Learning with Neural Networks", NeurIPS 2014, with the attention of Luong
    et al., "Effective Approaches to Attention-based Neural Machine Translation", EMNLP 2015 (without input feeding).

    Args:
        vocabulary: number of tokens of either language.
        width: features of a token and of a layer's state.
        layers: LSTM layers on either side.
    """

    def __init__(self, vocabulary: int = 8192, width: int = 256, layers: int = 2):
        super().__init__()
        self.encoder = Encoder(vocabulary, width, layers)
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(nn.LSTM(width, width, batch_first=True) for _ in range(layers))
        self.attention = Attention(width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, source: torch.Tensor, previous: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean cross-entropy of the target sentence, each token given the true ones before it.

        Args:
            source: `[N, S]`.
            previous: `[N, T]`, the target sentence one token behind.
            targets: `[N, T]`.
        """
        memory, states = self.encoder(source)
        x = self.embedding(previous)
        for layer, state in zip(self.layers, states, strict=True):
            x, _ = layer(x, state)
        return token_loss(self.head(self.attention(x, memory)), targets)
