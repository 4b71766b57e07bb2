"""What is in a folder of checkpoints, and how one becomes valid; also read as plain PyTorch's state dicts."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from ..errors import SegueError
from ..files import check_fields, read_json, read_text, write_text
from .message import decode_order

FORMAT = "segue.checkpoint/1"
RECORD = "checkpoint.json"
LATEST = "latest"
_NAME = re.compile(r"step-\d{6,}(-\d+)?")
_FIELDS: dict[str, type] = {
    "step": int,
    "seed": int,
    "graph": str,
    "placement": list,
    "names": dict,
    "orders": dict,
    "parameters": list,
    "groups": list,
    "numbers": dict,
    "extra": dict,
}


def begin(root: Path, step: int) -> str:
    """Make an empty folder to write aside in, remove what killed runs left; returns the checkpoint's name."""
    root.mkdir(parents=True, exist_ok=True)
    for path in root.glob("step-*.tmp"):
        shutil.rmtree(path)
    # A run that was resumed may come to the same step again.
    names = [f"step-{step:06d}", *(f"step-{step:06d}-{again}" for again in range(1, len(list(root.iterdir())) + 1))]
    name = next(name for name in names if not (root / name).exists())
    (root / f"{name}.tmp").mkdir()
    return name


def finish(root: Path, name: str, record: dict[str, Any], keep: int) -> None:
    """Make a checkpoint valid whose tensors are on disk, and remove the oldest."""
    aside = root / f"{name}.tmp"
    write_text(aside / RECORD, json.dumps(record) + "\n")
    _sync(aside / RECORD)
    _sync(aside)
    aside.rename(root / name)
    _sync(root)
    write_text(root / LATEST, name + "\n")
    others = [path for path in root.iterdir() if _NAME.fullmatch(path.name) and path.name != name]
    for path in sorted(others, key=lambda path: path.stat().st_mtime_ns, reverse=True)[keep - 1 :]:
        shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    """Have the disk take what was written."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def find(folder: str | os.PathLike) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that a folder is, or the latest in it, and its record."""
    path = Path(folder)
    if not (path / RECORD).exists():
        if not (path / LATEST).exists():
            raise SegueError(f"{path}: no checkpoint there")
        name = read_text(path / LATEST).strip()
        if not _NAME.fullmatch(name):
            raise SegueError(f"{path / LATEST}: expected the name of a checkpoint, got {name[:50]!r}")
        path = path / name
    record = read_json(path / RECORD, FORMAT)
    check_fields(record, ["format", *_FIELDS], [], str(path / RECORD))
    for field, kind in _FIELDS.items():
        if type(record[field]) is not kind:
            raise SegueError(f"{path / RECORD}: {field}: expected {kind.__name__}, got {type(record[field]).__name__}")
    return path, record


def plain_state(folder: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A checkpoint as the plain model's and the plain optimizer's `state_dict()`, on the CPU; needs no workers.

    Args:
        folder: as for `load_checkpoint`.

    Raises:
        SegueError: if there is no such checkpoint.
    """
    path, record = find(folder)
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        tensors.update(load_file(file))
    state: dict[str, dict[str, Any]] = {name: dict(values) for name, values in record["numbers"].items()}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, entry, name = key.split(".", 2)
            state.setdefault(name, {})[entry] = tensor
    model_state = {
        key: laid_out(tensors[f"model.{name}"], record["orders"].get(f"model.{name}"))
        for key, name in record["names"].items()
    }
    numbered = {i: state[name] for i, name in enumerate(record["parameters"]) if name in state}
    return model_state, {"state": numbered, "param_groups": [plain_group(group) for group in record["groups"]]}


def plain_group(group: dict[str, Any]) -> dict[str, Any]:
    """A parameter group as torch has it: of its sequences only `params` is a list."""
    return {k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in group.items()}


def laid_out(tensor: torch.Tensor, code: int | None) -> torch.Tensor:
    """A tensor in the memory order that it was saved from, so that the same kernels run on it."""
    if code is None:
        return tensor
    order = decode_order(code, tensor.dim())
    return tensor.permute(order).contiguous().permute(np.argsort(order).tolist())
