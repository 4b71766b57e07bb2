"""`mean_gain`: what greedy episodes of a policy gain, on scenarios that are always the same."""

from copy import deepcopy

import numpy as np
import torch

from ..env import EnvConfig, PlacementEnv
from ..env.vector import Sampler
from .network import PlacementNetwork

EVALUATION_SEED = 77_000_000


def mean_gain(network: PlacementNetwork, sampler: Sampler, config: EnvConfig, count: int) -> float:
    """Mean logarithm of the start's step time over the best in greedy episodes of `count` scenarios, always the same."""
    gains, network = [], deepcopy(network).cpu()
    for index in range(count):
        env = PlacementEnv(sampler=sampler, config=config)
        observation, info = env.reset(seed=EVALUATION_SEED + index)
        start_s, over = info["step_time_s"], False
        while not over:
            batch = {key: torch.from_numpy(value)[None] for key, value in observation.items()}
            with torch.no_grad():
                logits = network(batch)[0][0].numpy()
            action = int(np.where(env.action_masks(), logits, -np.inf).argmax())
            observation, _, over, _, info = env.step(action)
        gains.append(float(np.log(start_s / info["best_step_time_s"])))
    return float(np.mean(gains))
