"""`PlacementNetwork`: scores of every move of every unit to every device, for any number of groups and devices."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..env.observation import (
    DEVICE_FEATURES,
    EDGE_FEATURES,
    GROUP_FEATURES,
    LINK_FEATURES,
    MEASURED_OF_DEVICES,
    MEASURED_OF_STEP,
    MOVE_FEATURES,
    STEP_FEATURES,
)


class Encoding(NamedTuple):
    """Embeddings of a batch of `b` observations, `h` wide.

    Attributes:
        groups: `[b, n, h]`.
        devices: `[b, d, h]`.
        held: mean embedding of the groups on each device, `[b, d, h]`.
        whole: of the whole state, `[b, h]`.
    """

    groups: Tensor
    devices: Tensor
    held: Tensor
    whole: Tensor


class Scores(NamedTuple):
    """What the network says of a batch of states.

    Attributes:
        logits: of every move, unmasked, `[b, ...]`.
        change: predicted logarithm of step time after over before, likewise.
        stop: logit of stopping, `[b]`.
        value: predicted sum of rewards to come, `[b]`.
    """

    logits: Tensor
    change: Tensor
    stop: Tensor
    value: Tensor


class PlacementNetwork(nn.Module):
    """Message passing between groups and devices, and one scoring head that all units and devices share.

    Nothing depends on the number or order of devices: relabelling them permutes the scores.

    Args:
        hidden: width of the embeddings.
        rounds: rounds of message passing; without any, groups hear of each other only through means.
        history: whether it sees what was measured: earlier step times, and how long devices computed, waited and sent.
    """

    def __init__(self, hidden: int = 64, rounds: int = 3, history: bool = True):
        super().__init__()
        self.hidden, self.rounds, self.history = hidden, rounds, history
        self.group_in = nn.Linear(GROUP_FEATURES, hidden)
        self.device_in = nn.Linear(DEVICE_FEATURES + 2 * LINK_FEATURES, hidden)
        self.layers = nn.ModuleList(_Round(hidden) for _ in range(rounds))
        self.whole = nn.Linear(2 * hidden + STEP_FEATURES, hidden)
        # One layer over (whole, unit, where it is, where it goes, the move itself), written as a sum.
        self.of_whole = nn.Linear(hidden, hidden)
        self.of_unit = nn.Linear(hidden, hidden, bias=False)
        self.of_target = nn.Linear(2 * hidden, hidden, bias=False)
        self.of_move = nn.Linear(MOVE_FEATURES, hidden, bias=False)
        self.move_hidden = nn.Linear(hidden, hidden)
        self.move_out = _last(hidden, 2)
        self.state_hidden = nn.Linear(hidden, hidden)
        self.state_out = _last(hidden, 2)

    @property
    def arguments(self) -> dict[str, Any]:
        """What another network of the same shape is made with."""
        return {"hidden": self.hidden, "rounds": self.rounds, "history": self.history}

    def encode(self, obs: dict[str, Tensor]) -> Encoding:
        """Embed groups, devices and the whole of a batch of observations."""
        if not self.history:
            obs = _without_history(obs)
        group_mask, device_mask = obs["group_mask"].unsqueeze(2), obs["device_mask"].unsqueeze(2)
        others = (device_mask.sum(1, keepdim=True) - 1).clamp(min=1)
        links = torch.cat([obs["links"].sum(1), obs["links"].sum(2)], dim=2) / others
        groups = torch.relu(self.group_in(obs["groups"])) * group_mask
        devices = torch.relu(self.device_in(torch.cat([obs["devices"], links], dim=2))) * device_mask
        adjacency = _adjacency(obs, groups.shape[1])
        for layer in self.layers:
            groups, devices = layer(groups, devices, adjacency, obs["placement"], group_mask, device_mask)
        placed = obs["placement"].transpose(1, 2)
        held = placed @ groups / placed.sum(2, keepdim=True).clamp(min=1)
        pooled = [_mean(groups, group_mask), _mean(devices, device_mask), obs["step"]]
        return Encoding(groups, devices, held, torch.relu(self.whole(torch.cat(pooled, dim=1))))

    def score(self, encoding: Encoding, units: Tensor, moves: Tensor) -> Scores:
        """Scores of every unit on every device.

        Args:
            encoding: of `b` observations.
            units: groups in each unit, `[b, u, n]`.
            moves: features of moving each unit to each device, `[b, u, d, MOVE_FEATURES]`.

        Returns:
            Scores of shape `[b, u, d]`.
        """
        unit = units @ encoding.groups / units.sum(2, keepdim=True).clamp(min=1)
        target = self.of_target(torch.cat([encoding.devices, encoding.held], dim=2))
        context = self.of_whole(encoding.whole).unsqueeze(1) + self.of_unit(unit)
        return self._finish(encoding, context.unsqueeze(2) + target.unsqueeze(1) + self.of_move(moves))

    def score_some(self, encoding: Encoding, units: Tensor, devices: Tensor, moves: Tensor) -> Scores:
        """Scores of `k` single moves in each observation, `[b, k]`.

        Args:
            encoding: of `b` observations.
            units: groups in the unit of each move, `[b, k, n]`.
            devices: device that each goes to, `int64[b, k]`.
            moves: features of each move, `[b, k, MOVE_FEATURES]`.
        """
        unit = units @ encoding.groups / units.sum(2, keepdim=True).clamp(min=1)
        target = self.of_target(torch.cat([encoding.devices, encoding.held], dim=2))
        target = target.gather(1, devices.unsqueeze(2).expand(-1, -1, target.shape[2]))
        context = self.of_whole(encoding.whole).unsqueeze(1) + self.of_unit(unit)
        return self._finish(encoding, context + target + self.of_move(moves))

    def _finish(self, encoding: Encoding, hidden: Tensor) -> Scores:
        logits, change = self.move_out(torch.relu(self.move_hidden(torch.relu(hidden)))).unbind(-1)
        stop, value = self.state_out(torch.relu(self.state_hidden(encoding.whole))).unbind(-1)
        return Scores(logits, change, stop, value)

    def forward(self, obs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits `[b, u * d + 1]`, of stopping and of every move, and the state's value `[b]`."""
        scores = self.score(self.encode(obs), obs["units"], obs["moves"])
        return torch.cat([scores.stop.unsqueeze(1), scores.logits.flatten(1)], dim=1), scores.value


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


def _without_history(obs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The observations with what was measured at zero."""
    result = dict(obs)
    for key, columns in (("step", MEASURED_OF_STEP), ("devices", MEASURED_OF_DEVICES)):
        result[key] = obs[key].clone()
        result[key][..., list(columns)] = 0.0
    return result


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return values.sum(1) / mask.sum(1).clamp(min=1)


def _last(hidden: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(hidden, outputs)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer
