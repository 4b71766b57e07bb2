"""`keep_freed_memory`: what tensors have freed is used again, instead of being given back to the system in every step."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_IN_HEAP, _KEPT = 2**25, 2**30


def keep_freed_memory() -> bool:
    """Let glibc's allocator keep up to a GiB of freed memory, and take tensors of up to 32 MiB from it.

    By default a tensor of some MiB can get fresh pages in each step, which the system has to clear first. 32 MiB is the most
    that glibc allows. Returns whether it was done: other C libraries have no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_IN_HEAP) and mallopt(_M_TRIM_THRESHOLD, _KEPT))
