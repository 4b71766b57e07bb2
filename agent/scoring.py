"""`score_states`: the network's scores of several states of one problem."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..env.observation import move_features, observe_state
from ..env.state import State
from .network import PlacementNetwork, Scores


def score_states(
    network: PlacementNetwork, states: Sequence[State], steps: Sequence[NDArray[np.float32]]
) -> list[Scores]:
    """Scores of every unit on every device in each of `b` states, in one pass of the network.

    Args:
        network: the policy.
        states: placements of one problem.
        steps: what `step_features` says of each.

    Returns:
        One for each state, of shape `[1, u, d]`; states differ in their number of units.
    """
    seen = [observe_state(state, step) for state, step in zip(states, steps, strict=True)]
    batch = {key: torch.from_numpy(np.stack([one[key] for one in seen])) for key in seen[0]}
    most = max(len(state.member) for state in states)
    units, moves = (
        torch.from_numpy(np.stack([_padded(array, most) for array in arrays]))
        for arrays in (
            [state.member.astype(np.float32) for state in states],
            [move_features(state) for state in states],
        )
    )
    with torch.no_grad():
        logits, change, stop, value = network.score(network.encode(batch), units, moves)
    return [
        Scores(logits[row, None, :count], change[row, None, :count], stop[row, None], value[row, None])
        for row, count in enumerate(len(state.member) for state in states)
    ]


def _padded(array: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    return np.concatenate([array, np.zeros((rows - len(array), *array.shape[1:]), np.float32)])
