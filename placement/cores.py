"""`usable_cores`: the processor cores that this process may use."""

import os


def usable_cores() -> list[int]:
    """Their numbers, ascending; all of the machine's where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
