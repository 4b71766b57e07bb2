"""`make_vec_env`: several environments side by side, as stable-baselines3 wants them."""

from collections.abc import Callable

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv

from .config import EnvConfig
from .placement_env import PlacementEnv
from .scenarios import Scenario

Sampler = Callable[[np.random.Generator], Scenario]


def make_vec_env(sampler: Sampler, n: int, seed: int, config: EnvConfig | None = None) -> DummyVecEnv:
    """`n` environments that each draw a new scenario for every episode.

    Args:
        sampler: draws a `Scenario` from a `numpy.random.Generator`.
        n: how many environments.
        seed: environment `i` is seeded with `seed + i`.
        config: sizes and reward weights.
    """
    env = DummyVecEnv([lambda: PlacementEnv(sampler=sampler, config=config) for _ in range(n)])
    env.seed(seed)
    return env
