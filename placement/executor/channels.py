"""`Channels`: when the links of emulated devices are free, in a file that the workers of a machine share."""

import fcntl
import mmap
import os
import tempfile

import numpy as np

from ..topology import Topology


class Channels:
    """What each channel of a topology is taken until, `time.monotonic` seconds; all workers of `launch` see the same.

    Args:
        topology: whose links name the channels.
    """

    def __init__(self, topology: Topology):
        self.start, self.of = topology.channels
        self.num_devices = topology.num_devices
        size = 8 * max(1, topology.num_channels)
        store = os.environ.get("SEGUE_STORE")
        # Workers that `launch` has not started share no folder; each then has the channels to itself.
        self._file = open(f"{store}-channels", "a+b") if store else tempfile.TemporaryFile()  # noqa: SIM115
        with self:
            if os.fstat(self._file.fileno()).st_size < size:
                os.ftruncate(self._file.fileno(), size)
        self._free = np.frombuffer(mmap.mmap(self._file.fileno(), size), np.float64)

    def __enter__(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *error: object) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def take(self, source: int, target: int, ready: float, seconds: float) -> float:
        """Send for `seconds` over a link, once `ready` and every channel of it is free; returns when that has ended."""
        pair = source * self.num_devices + target
        mine = self.of[self.start[pair] : self.start[pair + 1]]
        with self:
            end = max(ready, float(self._free[mine].max())) + seconds
            self._free[mine] = end
        return end
