"""`score_state`: the network's scores of one state."""

import numpy as np
import torch
from numpy.typing import NDArray

from ..env.observation import move_features, observe_state
from ..env.state import State
from .network import PlacementNetwork, Scores


def score_state(network: PlacementNetwork, state: State, step: NDArray[np.float32]) -> Scores:
    """Scores of every unit on every device in one state, `[1, u, d]`.

    Args:
        network: the policy.
        state: the state.
        step: what `step_features` says of it.
    """
    batch = {key: torch.from_numpy(value)[None] for key, value in observe_state(state, step).items()}
    units = torch.from_numpy(state.member.astype(np.float32))[None]
    with torch.no_grad():
        return network.score(network.encode(batch), units, torch.from_numpy(move_features(state))[None])
