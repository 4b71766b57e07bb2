"""Versioned JSON files: written aside and renamed, checked on reading."""

import json
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import SegueError


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` to a temporary file beside `path` and rename it, so that no reader ever sees half a file."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """As `write_text`, for bytes."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: str | os.PathLike, record: dict[str, Any]) -> None:
    """Write `record` as JSON with `write_text`."""
    write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike, expected_format: str) -> dict[str, Any]:
    """Read a JSON object whose `format` field is `expected_format`.

    Raises:
        SegueError: if the file cannot be read, is not a JSON object, or has another format.
    """
    record = read_object(path)
    check_format(record, expected_format, str(path))
    return record


def read_object(path: str | os.PathLike, what: str = "an object at the top") -> dict[str, Any]:
    """Read a JSON object, with or without a `format` field; `what` says in errors what it is.

    Raises:
        SegueError: if the file cannot be read or is not a JSON object.
    """
    content = read_text(path)
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SegueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise SegueError(f"{path}: expected {what}, got {type(record).__name__}")
    return record


def read_text(path: str | os.PathLike) -> str:
    """The text of a UTF-8 file, or a `SegueError` that says why it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise SegueError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SegueError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error


def check_format(record: Any, expected_format: str, where: str) -> None:
    """Raise `SegueError` unless `record` is a mapping with `format` equal to `expected_format`."""
    if not isinstance(record, dict):
        raise SegueError(f"{where}: expected an object at the top, got {type(record).__name__}")
    if record.get("format") != expected_format:
        raise SegueError(f"{where}: format: expected {expected_format!r}, got {record.get('format')!r}")


def check_fields(record: dict[str, Any], required: Iterable[str], optional: Iterable[str], where: str) -> None:
    """Raise `SegueError` naming the first missing or unknown field of `record`."""
    required, optional = list(required), list(optional)
    for field in required:
        if field not in record:
            raise SegueError(f"{where}: {field}: missing")
    for field in record:
        if field not in required and field not in optional:
            raise SegueError(f"{where}: {field}: unknown field; known: {', '.join(required + optional)}")


def text(value: Any, field: str, where: str) -> str:
    """Return a name (a whole number in YAML is one too), or raise `SegueError` naming the field."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise SegueError(f"{where}: {field} must be text, got {type(value).__name__}")
    return check_text(str(value), field, where)


def check_text(value: str, field: str, where: str) -> str:
    """Return `value`, or raise `SegueError` if it cannot be written as UTF-8 (half a surrogate pair)."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise SegueError(f"{where}: {field}: {value!a} is not valid Unicode") from error
    return value


def number(value: Any, field: str, where: str, *, above: float | None = None, least: float | None = None) -> float:
    """Return `value` as a finite float, or raise `SegueError` naming the field and the bound it breaks."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        # YAML reads 16e9 as a string (it wants 16.0e+9); what a person means by it is clear.
        try:
            value = float(value) if isinstance(value, str) else None
        except ValueError:
            value = None
        if value is None:
            raise SegueError(f"{where}: {field} must be a number")
    try:
        value = float(value)
    except OverflowError:
        value = float("inf") if value > 0 else float("-inf")
    if not abs(value) < float("inf"):
        raise SegueError(f"{where}: {field} must be finite, got {value}")
    if 0 < abs(value) < sys.float_info.min:
        raise SegueError(f"{where}: {field} is too close to 0 to divide by, got {value:g}")
    if above is not None and not value > above:
        raise SegueError(f"{where}: {field} must be > {above:g}, got {value:g}")
    if least is not None and not value >= least:
        raise SegueError(f"{where}: {field} must be >= {least:g}, got {value:g}")
    return value
