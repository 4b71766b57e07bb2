"""How the functions that search and simulation spend their time in are compiled."""

from typing import Any

from numba import njit

# For functions that allocate nothing: without counting references to arrays they run several times as fast.
_without_references: Any = {"_nrt": False}
hot = njit(cache=True, **_without_references)

# Small ones that take many arrays are faster still where they are inlined: a call hands over every array field by field.
inlined = njit(cache=True, inline="always", **_without_references)
