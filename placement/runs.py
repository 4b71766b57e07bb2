"""`Run`: what one module call did between two others, and the graph of such runs."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from .errors import SegueError
from .graph import Graph, make_graph


@dataclass
class Run:
    """Consecutive aten calls of one module call, and what they cost.

    Attributes:
        module: the module's path.
        flops: forward FLOPs by kind of call.
        costs: other columns of a `Graph`.
        state: the parameters and buffers that it used, in order.
        outputs: bytes of each memory that it wrote and others read.
        requires_grad: whether a gradient comes back to one of these.
        multiplied: whether it has multiplied with a parameter.
    """

    module: str
    flops: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    costs: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    state: dict[str, None] = field(default_factory=dict)
    outputs: dict[int, float] = field(default_factory=dict)
    requires_grad: bool = False
    multiplied: bool = False


class ModelState:
    """A model's parameters and buffers by memory; tied ones share the first of their names."""

    def __init__(self, model: nn.Module, prefix: str):
        self.names: dict[int, list[str]] = defaultdict(list)
        self.nbytes: dict[str, float] = {}
        self.trainable: set[str] = set()
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            short = name.removeprefix(prefix)
            self.names[storage_of(tensor)].append(short)
            self.nbytes[short] = float(tensor.nbytes)
            if tensor.requires_grad:
                self.trainable.add(short)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]


def storage_of(tensor: torch.Tensor) -> int:
    """The address of what holds a tensor's memory."""
    try:
        return tensor.untyped_storage()._cdata
    except NotImplementedError as error:
        raise SegueError(f"model: a {tensor.layout} tensor cannot be traced, only dense ones") from error


def runs_graph(
    name: str, runs: list[Run], edges: set[tuple[int, int]], state: ModelState, batch_size: int, prefix: str
) -> Graph:
    """The `Graph` whose ops are runs.

    Args:
        name: the graph's name.
        runs: in the order of time.
        edges: pairs of runs.
        state: the model's parameters and buffers.
        batch_size: samples in the traced batch.
        prefix: dropped from the front of module paths.
    """
    modules = [f"{run.module}.".removeprefix(prefix).removesuffix(".") for run in runs]
    kinds = [max(run.flops, key=lambda kind: run.flops[kind], default="op") for run in runs]
    parameter_bytes, buffer_bytes = np.zeros(len(runs)), np.zeros(len(runs))
    for tensor_name, op in _owners(runs, state, modules).items():
        column = parameter_bytes if tensor_name in state.trainable else buffer_bytes
        column[op] += state.nbytes[tensor_name]
    columns = ("backward_flops", "read_bytes", "written_bytes", "saved_bytes")
    return make_graph(
        name,
        sorted(edges),
        len(runs),
        batch_size=batch_size,
        names=_names(modules, kinds),
        kinds=kinds,
        modules=modules,
        requires_grad=np.array([run.requires_grad for run in runs]),
        colocation=_colocation(runs),
        forward_flops=[float(sum(run.flops.values())) for run in runs],
        parameter_bytes=parameter_bytes,
        buffer_bytes=buffer_bytes,
        output_bytes=[sum(run.outputs.values()) for run in runs],
        **{column: [float(run.costs[column]) for run in runs] for column in columns},
    )


def _owners(runs: list[Run], state: ModelState, modules: list[str]) -> dict[str, int]:
    """The run that each of the model's tensors counts at: its first reader, or for one not read the nearest module's."""
    owners: dict[str, int] = {}
    for op, run in enumerate(runs):
        for tensor_name in run.state:
            owners.setdefault(tensor_name, op)
    paths = [module.split(".") for module in modules]
    for tensor_name in state.nbytes:
        if tensor_name in state.trainable and tensor_name not in owners:
            path = tensor_name.split(".")
            owners[tensor_name] = max(range(len(paths)), key=lambda op, path=path: _shared(paths[op], path))
    return owners


def _shared(first: list[str], second: list[str]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _names(modules: list[str], kinds: list[str]) -> list[str]:
    """A name for each run: its module's path, numbered from the second run of a module on."""
    names: dict[str, None] = {}
    seen: Counter[str] = Counter()
    for module, kind in zip(modules, kinds, strict=True):
        stem = module or kind
        name = stem
        while name in names or not name:
            seen[stem] += 1
            name = f"{stem}_{seen[stem]}"
        names[name] = None
    return list(names)


def _colocation(runs: list[Run]) -> np.ndarray:
    """The runs that use one parameter or buffer share a device."""
    group = list(range(len(runs)))

    def find(op: int) -> int:
        while group[op] != op:
            group[op] = op = group[group[op]]
        return op

    first_user: dict[str, int] = {}
    for op, run in enumerate(runs):
        for tensor_name in run.state:
            a, b = sorted((find(op), find(first_user.setdefault(tensor_name, op))))
            group[b] = a
    roots = np.array([find(op) for op in range(len(runs))])
    values, inverse, counts = np.unique(roots, return_inverse=True, return_counts=True)
    labels = np.full(len(values), -1)
    labels[counts > 1] = np.arange((counts > 1).sum())
    return labels[inverse]
