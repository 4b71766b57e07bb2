"""`accelerate-balanced` and `accelerate-sequential`: the maps that Hugging Face accelerate infers."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from ..clock import SimulatedClock
from ..device_map import follow_inputs
from ..errors import SegueError
from ..graph import Graph
from .plan import Devices, Evaluator

BLOCK = "Block"
PREFIX = "m_"  # keeps module names apart from the attributes of `nn.Module`
MOST_BYTES = 2**62


def accelerate_balanced(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """`device_map="balanced"`: accelerate's `get_balanced_memory`, then its `infer_auto_device_map` (`accelerate_map`)."""
    del rng
    evaluator(accelerate_map(evaluator.clock, balanced=True))


def accelerate_sequential(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """`device_map="sequential"`: accelerate's `infer_auto_device_map` fills one device after the other."""
    del rng
    evaluator(accelerate_map(evaluator.clock, balanced=False))


def accelerate_map(clock: SimulatedClock, balanced: bool) -> Devices:
    """The map that the library accelerate infers for the graph's modules, on our schedule as a pipeline.

    The library itself is called (Gugger et al., "Accelerate", 2022; https://github.com/huggingface/accelerate), on a
    skeleton of the model: a module for each module path, with tensors of the right size on the meta device. What it
    answers is what it would for the model, as far as this holds:

    - Modules are listed in the order of first use, the model's own are in the order in which its constructor makes them.
    - A tied weight counts once, at its first user, and the other users follow it, as the library does with ties.
    - `no_split_module_classes` are the numbered modules whose parts have names (`layers.3` of `layers.3.attention`),
      which is what the models of transformers declare.
    - All bytes count as float32; the library only ever compares bytes.
    - It looks at weights alone: neither gradients, optimizer state and activations nor the devices' speed.

    What a module computes besides calling its parts runs where its inputs are. Modules that the library would offload for
    want of memory go where most room is left; the clock then says what overflows.

    Returns:
        Device of every op, `int64[n]`.

    Raises:
        SegueError: if accelerate is not installed.
    """
    try:
        from accelerate import infer_auto_device_map
        from accelerate.utils import get_balanced_memory
    except ImportError as error:
        raise SegueError("planner 'accelerate-…': accelerate is missing; pip install 'segue[planners]'") from error
    graph = clock.graph
    model = _skeleton(graph)
    memory: Any = {
        device: int(min(size, MOST_BYTES)) for device, size in enumerate(clock.topology.memory_bytes.tolist())
    }
    with _quiet():
        if balanced:
            memory = get_balanced_memory(model, memory, no_split_module_classes=[BLOCK])
        found = infer_auto_device_map(model, memory, no_split_module_classes=[BLOCK])
    return _placed(found, clock)


def _skeleton(graph: Graph) -> nn.Module:
    """The tree of the graph's modules, each op's parameters and buffers as one meta tensor each."""
    classes = {"": nn.Module}
    root = nn.Module()
    for op, path in enumerate(graph.modules):
        module = root
        parts = path.split(".") if path else []
        block = _block_depth(parts)
        for depth, part in enumerate(parts, 1):
            kind = BLOCK if depth == block else ""
            name = PREFIX + part
            if name not in module._modules:
                module.add_module(name, classes.setdefault(kind, type(kind or "Module", (nn.Module,), {}))())
            module = module.get_submodule(name)
        for suffix, size in (("", graph.parameter_bytes[op]), ("b", graph.buffer_bytes[op])):
            if size > 0:
                tensor = torch.empty(max(1, round(size / 4)), device="meta")
                if suffix:
                    module.register_buffer(_tensor_name(op, suffix), tensor)
                else:
                    module.register_parameter(_tensor_name(op), nn.Parameter(tensor))
    return root


def _block_depth(parts: list[str]) -> int:
    """How many parts lead to the outermost numbered module whose parts have names; 0 if there is none."""
    for depth in range(1, len(parts)):
        if parts[depth - 1].isdigit() and not parts[depth].isdigit():
            return depth
    return 0


def _tensor_name(op: int, suffix: str = "") -> str:
    return f"op{op}{suffix}"


def _placed(found: dict[str, Any], clock: SimulatedClock) -> Devices:
    """Device of every op under the library's map of (prefixed) module and tensor names."""
    graph = clock.graph
    entry_of = [_entry(found, path, op) for op, path in enumerate(graph.modules)]
    positions = {entry: position for position, entry in enumerate(found)}
    entry = np.array([positions.get(name, -1) for name in entry_of])
    held = np.bincount(entry + 1, clock.costs.state_bytes, len(found) + 1)[1:]
    where = np.array([value if isinstance(value, int) else -1 for value in found.values()], np.int64)
    room = clock.topology.memory_bytes - np.bincount(where[where >= 0], held[where >= 0], clock.topology.num_devices)
    for offloaded in np.flatnonzero(where < 0):
        where[offloaded] = np.argmax(room)
        room[where[offloaded]] -= held[offloaded]
    return follow_inputs(np.append(where, -1)[entry], graph)


def _entry(found: dict[str, Any], path: str, op: int) -> str:
    """The entry of the map that covers an op: that of its tensor, else of its module or the nearest around it.

    The root, which may have no entry, if there is none.
    """
    name = ".".join(PREFIX + part for part in path.split(".")) if path else ""
    for suffix in ("", "b"):
        tensor = ".".join(filter(None, (name, _tensor_name(op, suffix))))
        if tensor in found:
            return tensor
    while name and name not in found:
        name = name.rpartition(".")[0]
    return name


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's warnings that this machine has no such devices, and about what it would offload."""
    logger = logging.getLogger("accelerate.utils.modeling")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
