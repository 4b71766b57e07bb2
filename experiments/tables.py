"""Plain text tables for the terminal."""

import re
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

NUMBER = re.compile(r"-|[-+]?[\d.]+(e[-+]?\d+)?( ?%)?")


def format_table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    """A table of aligned columns, numbers to the right, everything else to the left.

    Args:
        rows: cells; floats are written with four significant digits, `None` as `-`.
        headers: column names, as many as each row has cells.

    Returns:
        Lines joined by newlines, without one at the end.
    """
    texts = [[cell_text(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *texts, strict=True)]
    numeric = [_is_numeric(column) for column in zip(*texts, strict=True)] or [False] * len(headers)
    lines = [_line(headers, widths, numeric), "  ".join("-" * width for width in widths)]
    lines += [_line(row, widths, numeric) for row in texts]
    return "\n".join(lines)


def cell_text(cell: Any) -> str:
    """A cell as people read it."""
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return f"{cell:.4g}" if isinstance(cell, Real) and not isinstance(cell, Integral) else str(cell)


def is_number(cell: Any) -> bool:
    """Whether a cell is a number, Python's or numpy's (and not a truth value)."""
    return isinstance(cell, Real) and not isinstance(cell, bool)


def _is_numeric(column: Sequence[str]) -> bool:
    return all(NUMBER.fullmatch(text) for text in column)


def _line(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    padded = [
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(cells, widths, numeric, strict=True)
    ]
    return "  ".join(padded).rstrip()
