"""`plain`: arrays as compiled functions take them, so that each is compiled once."""

from typing import Any, TypeVar

import numpy as np

T = TypeVar("T", bound=tuple[Any, ...])


def plain(fields: T) -> T:
    """A named tuple whose arrays are contiguous and writable; copies only of those that are not.

    Numba compiles a function anew for every memory layout, and for arrays that cannot be written to: seconds for each.
    """
    kind: Any = type(fields)
    return kind(
        *(np.require(field, requirements=["C", "W"]) if isinstance(field, np.ndarray) else field for field in fields)
    )
