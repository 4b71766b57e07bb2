"""`PlacementPolicy`: the network as stable-baselines3 wants it."""

from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from .network import PlacementNetwork


class PlacementExtractor(BaseFeaturesExtractor):
    """The whole network; its features are the logits of all actions and, last, the value.

    Args:
        observation_space: that of `PlacementEnv`.
        **arguments: of the `PlacementNetwork`.
    """

    def __init__(self, observation_space: spaces.Dict, **arguments: Any):
        actions = observation_space["action_mask"].shape
        assert actions is not None
        super().__init__(observation_space, actions[0] + 1)
        self.network = PlacementNetwork(**arguments)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """`[b, actions + 1]`."""
        logits, value = self.network(observations)
        return torch.cat([logits, value.unsqueeze(1)], dim=1)


class _Split(nn.Module):
    """Hands logits to the actor and the value to the critic."""

    def __init__(self, actions: int):
        super().__init__()
        self.latent_dim_pi, self.latent_dim_vf = actions, 1

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: Tensor) -> Tensor:
        return features[:, :-1]

    def forward_critic(self, features: Tensor) -> Tensor:
        return features[:, -1:]


class PlacementPolicy(MaskableActorCriticPolicy):
    """MaskablePPO policy whose logits and values come from one `PlacementNetwork`.

    Args:
        observation_space: that of `PlacementEnv`.
        action_space: likewise.
        lr_schedule: learning rate by remaining progress.
        network: arguments of the `PlacementNetwork`.
        **kwargs: what stable-baselines3 passes on.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Any,
        network: Mapping[str, Any],
        **kwargs: Any,
    ):
        kwargs |= {
            "features_extractor_class": PlacementExtractor,
            "features_extractor_kwargs": dict(network),
            "ortho_init": False,
        }
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)  # pyright: ignore[reportArgumentType]

    @property
    def network(self) -> PlacementNetwork:
        """The weights that are worth keeping."""
        assert isinstance(self.features_extractor, PlacementExtractor)
        return self.features_extractor.network

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.action_net, self.value_net = nn.Identity(), nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # pyright: ignore

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = _Split(self.features_dim - 1)  # pyright: ignore[reportAttributeAccessIssue]
