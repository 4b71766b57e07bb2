"""`PlacementNetwork`: scores of moving a unit to each device, for any number of groups and devices."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..env.observation import (
    DEVICE_FEATURES,
    EDGE_FEATURES,
    GROUP_FEATURES,
    LINK_FEATURES,
    MOVE_FEATURES,
    STEP_FEATURES,
)

_SHARE = 8  # column of the move features: share of the unit that is on the device already


class Encoding(NamedTuple):
    """Embeddings of a batch of `b` observations, `h` wide.

    Attributes:
        groups: `[b, n, h]`.
        devices: `[b, d, h]`.
        whole: of the whole state, `[b, h]`.
    """

    groups: Tensor
    devices: Tensor
    whole: Tensor


class PlacementNetwork(nn.Module):
    """Message passing between groups and devices, and one scoring head that all devices share.

    Nothing depends on the number or order of devices: relabelling them permutes the scores.

    Args:
        hidden: width of the embeddings.
        rounds: rounds of message passing.
    """

    def __init__(self, hidden: int = 48, rounds: int = 2):
        super().__init__()
        self.hidden, self.rounds = hidden, rounds
        self.group_in = nn.Linear(GROUP_FEATURES, hidden)
        self.device_in = nn.Linear(DEVICE_FEATURES + 2 * LINK_FEATURES, hidden)
        self.layers = nn.ModuleList(_Round(hidden) for _ in range(rounds))
        self.whole = nn.Linear(2 * hidden + STEP_FEATURES, hidden)
        self.move_in = nn.Linear(3 * hidden + MOVE_FEATURES, hidden)
        self.move_out = _head(hidden)
        self.keep_in = nn.Linear(3 * hidden + MOVE_FEATURES, hidden)
        self.keep_out = _head(hidden)
        self.value_in = nn.Linear(2 * hidden, hidden)
        self.value_out = _head(hidden)

    def encode(self, obs: dict[str, Tensor]) -> Encoding:
        """Embed groups, devices and the whole of a batch of observations."""
        group_mask, device_mask = obs["group_mask"].unsqueeze(2), obs["device_mask"].unsqueeze(2)
        others = (device_mask.sum(1, keepdim=True) - 1).clamp(min=1)
        links = torch.cat([obs["links"].sum(1), obs["links"].sum(2)], dim=2) / others
        groups = torch.relu(self.group_in(obs["groups"])) * group_mask
        devices = torch.relu(self.device_in(torch.cat([obs["devices"], links], dim=2))) * device_mask
        adjacency = _adjacency(obs, groups.shape[1])
        for layer in self.layers:
            groups, devices = layer(groups, devices, adjacency, obs["placement"], group_mask, device_mask)
        pooled = [_mean(groups, group_mask), _mean(devices, device_mask), obs["step"]]
        return Encoding(groups, devices, torch.relu(self.whole(torch.cat(pooled, dim=1))))

    def score(self, encoding: Encoding, units: Tensor, moves: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of `u` units in each observation.

        Args:
            encoding: of `b` observations.
            units: groups in each unit, `[b, u, n]`.
            moves: features of moving each unit to each device, `[b, u, d, MOVE_FEATURES]`.

        Returns:
            Unmasked logits `[b, u, d + 1]` (keep, then each device), and values `[b, u]`.
        """
        unit = units @ encoding.groups / units.sum(2, keepdim=True).clamp(min=1)
        whole = encoding.whole.unsqueeze(1).expand_as(unit)
        context = torch.cat([unit, whole], dim=2)
        count = moves.shape[2]
        devices = encoding.devices.unsqueeze(1).expand(-1, unit.shape[1], -1, -1)
        each = torch.cat([context.unsqueeze(2).expand(-1, -1, count, -1), devices, moves], dim=3)
        move = self.move_out(torch.relu(self.move_in(each))).squeeze(3)
        share = moves[..., _SHARE].unsqueeze(3)
        here = torch.cat([context, (share * devices).sum(2), (share * moves).sum(2)], dim=2)
        keep = self.keep_out(torch.relu(self.keep_in(here)))
        value = self.value_out(torch.relu(self.value_in(context))).squeeze(2)
        return torch.cat([keep, move], dim=2), value

    def forward(self, obs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits `[b, d + 1]` for the current unit and the state's value `[b]`."""
        logits, value = self.score(self.encode(obs), obs["unit"].unsqueeze(1), obs["moves"].unsqueeze(1))
        return logits.squeeze(1), value.squeeze(1)


class _Round(nn.Module):
    """Groups hear from their inputs, outputs and device; devices hear from their groups and each other."""

    def __init__(self, hidden: int):
        super().__init__()
        self.group = nn.Linear(6 * hidden, hidden)
        self.device = nn.Linear(3 * hidden, hidden)
        self.group_norm, self.device_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)

    def forward(
        self,
        groups: Tensor,
        devices: Tensor,
        adjacency: tuple[Tensor, ...],
        placement: Tensor,
        group_mask: Tensor,
        device_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        heard = [matrix @ groups for matrix in adjacency]
        heard = torch.cat([groups, placement @ devices, *heard], dim=2)
        groups = self.group_norm(groups + torch.relu(self.group(heard))) * group_mask
        held = placement.transpose(1, 2) @ groups / group_mask.sum(1, keepdim=True).sqrt()
        everyone = _mean(devices, device_mask).unsqueeze(1).expand_as(devices)
        heard = torch.cat([devices, held, everyone], dim=2)
        devices = self.device_norm(devices + torch.relu(self.device(heard))) * device_mask
        return groups, devices


def _adjacency(obs: dict[str, Tensor], count: int) -> tuple[Tensor, ...]:
    """Mean over inputs and outputs, plain and weighted by transfer time, each `[b, n, n]`."""
    source, target = obs["edges"].long().unbind(2)
    weights = torch.stack([obs["edge_mask"], obs["edge_mask"] * obs["edge_features"][..., EDGE_FEATURES - 1]], dim=1)
    flat = torch.zeros(len(source), 2, count * count, dtype=weights.dtype, device=weights.device)
    flat.scatter_add_(2, (target * count + source).unsqueeze(1).expand_as(weights), weights)
    into = flat.view(-1, 2, count, count)
    out = into.transpose(2, 3)
    plain_in, plain_out = into[:, 0], out[:, 0]
    return (
        plain_in / plain_in.sum(2, keepdim=True).clamp(min=1),
        plain_out / plain_out.sum(2, keepdim=True).clamp(min=1),
        into[:, 1].clamp(max=2),
        out[:, 1].clamp(max=2),
    )


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return values.sum(1) / mask.sum(1).clamp(min=1)


def _head(hidden: int) -> nn.Sequential:
    last = nn.Linear(hidden, 1)
    nn.init.normal_(last.weight, std=0.01)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), last)
