"""The gymnasium environment over any clock."""

import gymnasium

from .config import EnvConfig
from .placement_env import PlacementEnv
from .scenarios import Scenario, ScenarioSampler
from .vector import make_vec_env

ENV_ID = "segue/Placement-v0"

gymnasium.register(id=ENV_ID, entry_point="segue.env.placement_env:PlacementEnv")

__all__ = ["ENV_ID", "EnvConfig", "PlacementEnv", "Scenario", "ScenarioSampler", "make_vec_env"]
