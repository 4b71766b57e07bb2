"""Several ways to do the same thing, timed in turns, so that whatever disturbs the machine disturbs them all."""

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def take_turns(ways: Mapping[str, Callable[[], object]], rounds: int, warm: int = 2) -> dict[str, Floats]:
    """Do every way once a round; called on every worker of a group, all of which do the same.

    Args:
        ways: name -> what to do.
        rounds: that count.
        warm: rounds before them that do not.

    Returns:
        Name -> seconds of each round, `float64[rounds]`: from a barrier until the last worker is done.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(warm + rounds):
        for name, do in ways.items():
            dist.barrier()
            start = time.perf_counter()
            do()
            times[name].append(time.perf_counter() - start)
    return {name: _slowest(np.array(seconds[warm:])) for name, seconds in times.items()}


def _slowest(seconds: Floats) -> Floats:
    """The longest of all workers' times, round by round."""
    longest = torch.from_numpy(seconds.copy())
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    return longest.numpy()


def median_ratio(times: Mapping[str, Floats], way: str, other: str) -> float:
    """Median over the rounds of the time of `way` over that of `other` in the same round."""
    return float(np.median(times[way] / times[other]))
