"""Units that a placement makes: the ends of its runs, whose moves shift a border, and what each device holds."""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def run_ends(home: Ints) -> Bools:
    """Every first and last part of two or more groups of every run, each once, `bool[u, n]`.

    A run is a longest sequence of consecutive groups on one device; the whole run counts as a last part.

    Args:
        home: device of every group, `int64[n]`.
    """
    count = len(home)
    place = np.arange(count)
    begins = np.append(True, home[1:] != home[:-1])
    number = np.cumsum(begins) - 1
    first = np.flatnonzero(begins)
    last = np.append(first[1:], count) - 1
    first, last = first[number], last[number]
    tails = place[last > place]
    heads = place[(first < place) & (place < last)]
    after = (place >= tails[:, None]) & (place <= last[tails][:, None])
    before = (place >= first[heads][:, None]) & (place <= heads[:, None])
    return np.concatenate([after, before])


def contents(home: Ints) -> tuple[Bools, Ints]:
    """What each device holds, for those that hold something, `bool[k, n]`, and which devices these are, `int64[k]`.

    Devices come in the order of their first groups, so that nothing depends on how they are numbered.

    Args:
        home: device of every group, `int64[n]`.
    """
    devices = home[np.sort(np.unique(home, return_index=True)[1])]
    return home == devices[:, None], devices
