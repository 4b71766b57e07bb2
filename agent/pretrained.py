"""Saved policies: weights as safetensors, what they are beside them as JSON."""

import json
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from ..placement.errors import SegueError
from .network import PlacementNetwork

FORMAT = "segue.policy/3"
DEFAULT = "default"


def save_policy(network: PlacementNetwork, path: str | PathLike, metadata: dict[str, Any] | None = None) -> None:
    """Write `path` (`.safetensors`) and, beside it, a `.json` with the network's sizes and `metadata`."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, file)
    record = {"format": FORMAT, **network.arguments, **(metadata or {})}
    file.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")


def load_policy(path: str | PathLike | None = None) -> PlacementNetwork:
    """Read a policy, ready to decide.

    Args:
        path: a `.safetensors` file with its `.json`; by default the policy shipped with segue.

    Raises:
        SegueError: if a file is missing, malformed, or the weights do not fit the sizes.
    """
    try:
        weights, record = _read(path)
        if record.get("format") != FORMAT:
            raise SegueError(f"policy {path}: format must be {FORMAT!r}, got {record.get('format')!r}")
        network = PlacementNetwork(int(record["hidden"]), int(record["rounds"]), bool(record.get("history", True)))
        network.load_state_dict(load(weights))
    except OSError as error:
        raise SegueError(f"policy {path or DEFAULT}: cannot be read: {error.strerror}: {error.filename}") from error
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        if isinstance(error, SegueError):
            raise
        raise SegueError(f"policy {path or DEFAULT}: not a segue policy: {' '.join(str(error).split())}") from error
    return network.eval().requires_grad_(False)


def _read(path: str | PathLike | None) -> tuple[bytes, dict[str, Any]]:
    if path is None:
        folder = resources.files(f"{__package__}.weights")
        files = folder / f"{DEFAULT}.safetensors", folder / f"{DEFAULT}.json"
        return files[0].read_bytes(), json.loads(files[1].read_text())
    file = Path(path)
    return file.read_bytes(), json.loads(file.with_suffix(".json").read_text())


def same_weights(a: PlacementNetwork, b: PlacementNetwork) -> bool:
    """Whether two policies are equal bit for bit."""
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
