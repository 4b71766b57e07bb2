"""Links of a machine from the text that `nvidia-smi topo -m` prints."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations, takewhile
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from .buses import Slot, bus_link, nvlink, one_nvlink_bytes_per_s
from .errors import SegueError
from .files import read_text
from .gpus import GIB, GPUS, find_gpu, pcie_bytes_per_s
from .topology import Device, Link, Topology, check_topology

# For a GPU of which no product is given.
ASSUMED_MEMORY_BYTES = 16 * GIB
ASSUMED_PCIE_GENERATION = 4
ASSUMED_NVLINKS = 18

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_GPU = re.compile(r"GPU[0-9]{1,4}")
_COLUMN = re.compile(r"[A-Za-z_]+[0-9]\S*")
_SAME_SWITCH = ("PIX", "PXB")
_SAME_SOCKET = (*_SAME_SWITCH, "PHB", "NODE")
_CODE = re.compile(r"NV[1-9][0-9]?|SYS|" + "|".join(_SAME_SOCKET))


@dataclass(frozen=True)
class _Matrix:
    """What the text says of `g` GPUs.

    Attributes:
        numbers: of the GPUs, `g`.
        codes: how each is joined to each, `[g][g]`; `X` on the diagonal.
        lines: where each GPU's row stands, `g`.
        cores: CPU cores near each, as they are written; empty where nothing is said.
        where: what errors call the text.
    """

    numbers: list[int]
    codes: list[list[str]]
    lines: list[int]
    cores: list[str]
    where: str


def read_topo(text: str, products: Sequence[str] = (), where: str = "nvidia-smi topo -m") -> Topology:
    """The GPUs of a machine and the links between them.

    Args:
        text: what `nvidia-smi topo -m` printed; colours, network cards and the legend may be in it.
        products: what each GPU is, in order, or one name for all of them; see `segue.placement.gpus.find_gpu`.
        where: what errors call the text.

    Raises:
        SegueError: for another text, with the number of the line, and for unknown products.
    """
    matrix = _parse(text, where)
    count = len(matrix.numbers)
    if len(products) not in (0, 1, count):
        raise SegueError(f"{where}: GPU products: expected one for all, or {count}, got {len(products)}")
    gpus = [find_gpu(name) for name in products] or [None]
    devices = [
        Device(
            name=f"gpu{number}",
            kind="cuda",
            memory_bytes=gpu.memory_bytes if gpu else ASSUMED_MEMORY_BYTES,
            index=number,
            model=gpu.name if gpu else "",
        )
        for number, gpu in zip(matrix.numbers, gpus * (count // len(gpus)), strict=True)
    ]
    topology = Topology(
        Path(where).stem, tuple(devices), _links(matrix, devices, [_pcie(device) for device in devices])
    )
    check_topology(topology, where)
    return topology


def load_topology_text(path: str | PathLike, products: Sequence[str] = ()) -> Topology:
    """`read_topo` of a file.

    Raises:
        SegueError: as `read_topo`, or if the file cannot be read.
    """
    return read_topo(read_text(path), products, str(path))


def topo_links(text: str, devices: Sequence[Device], pcie_bytes_per_s: Sequence[float]) -> tuple[Link, ...]:
    """Links between some of the GPUs in the text.

    Args:
        text: as for `read_topo`.
        devices: their `index` is the number that the text has for them.
        pcie_bytes_per_s: peak of each device's PCIe lanes, one way.

    Raises:
        SegueError: for another text, with the number of the line, and for a device that is not in it.
    """
    matrix = _parse(text, "nvidia-smi topo -m")
    for device in devices:
        if device.index not in matrix.numbers:
            raise SegueError(f"{matrix.where}: no row of GPU{device.index} ({device.name})")
    return _links(matrix, devices, pcie_bytes_per_s)


def _parse(text: str, where: str) -> _Matrix:
    rows = [_ANSI.sub("", line).split() for line in text.splitlines()]
    header = next((at for at, words in enumerate(rows) if _is_header(words)), None)
    if header is None:
        raise SegueError(
            f"{where}: line {max(1, len(rows))}: no row of names (GPU0 GPU1 …); expected nvidia-smi topo -m"
        )
    columns = list(takewhile(_COLUMN.fullmatch, rows[header]))
    gpus = [name for name in columns if _GPU.fullmatch(name)]
    if len(set(columns)) < len(columns):
        raise SegueError(f"{where}: line {header + 1}: a name appears twice")
    lines: dict[str, int] = {}
    for at, words in enumerate(rows[header + 1 :], header + 1):
        if words and words[0] in gpus:
            if words[0] in lines:
                raise SegueError(f"{where}: line {at + 1}: {words[0]} has a row already")
            if len(words) <= len(columns):
                raise SegueError(f"{where}: line {at + 1}: expected {len(columns)} connections, got {len(words) - 1}")
            lines[words[0]] = at
    for name in gpus:
        if name not in lines:
            raise SegueError(f"{where}: line {header + 1}: {name} has a column, but no row follows")
    matrix = _Matrix(
        numbers=[int(name[3:]) for name in gpus],
        codes=[[rows[lines[name]][1 + columns.index(other)] for other in gpus] for name in gpus],
        lines=[lines[name] + 1 for name in gpus],
        cores=["".join(rows[lines[name]][len(columns) + 1 :][:1]) for name in gpus],
        where=where,
    )
    _check(matrix)
    return matrix


def _is_header(words: list[str]) -> bool:
    """Names only; a row has `X` or a connection behind its name."""
    return bool(words and _GPU.fullmatch(words[0])) and not (
        words[1:] and (words[1] == "X" or _CODE.fullmatch(words[1]))
    )


def _check(matrix: _Matrix) -> None:
    for a, row in enumerate(matrix.codes):
        for b, code in enumerate(row):
            here = f"{matrix.where}: line {matrix.lines[a]}: GPU{matrix.numbers[a]} to GPU{matrix.numbers[b]}"
            if a == b and code != "X":
                raise SegueError(f"{here}: expected X, got {code!r}")
            if a != b and not _CODE.fullmatch(code):
                raise SegueError(f"{here}: expected NV#, PIX, PXB, PHB, NODE or SYS, got {code!r}")
            if b < a and code != matrix.codes[b][a]:
                raise SegueError(f"{here}: {code}, but the other way {matrix.codes[b][a]}")


def _links(matrix: _Matrix, devices: Sequence[Device], pcie: Sequence[float]) -> tuple[Link, ...]:
    switches = _groups(matrix, _SAME_SWITCH)
    sockets = _sockets(matrix)
    at = [matrix.numbers.index(device.index) for device in devices]
    slots = [
        Slot(
            device=device.name,
            lane=f"host0.gpu{device.index}",
            pcie_bytes_per_s=lanes,
            switch=f"host0.switch{switches[i]}" if (switches == switches[i]).sum() > 1 else "",
            socket=f"host0.cpu{sockets[i]}",
        )
        for i, device, lanes in zip(at, devices, pcie, strict=True)
    ]

    def join(a: int, b: int) -> Link:
        code = matrix.codes[at[a]][at[b]]
        if not code.startswith("NV"):
            return bus_link(slots[a], slots[b])
        one = min(one_nvlink_bytes_per_s(devices[i].model) for i in (a, b))
        switched = _beyond_own_links(matrix, at[a], devices[a]) or _beyond_own_links(matrix, at[b], devices[b])
        return nvlink(slots[a], slots[b], int(code[2:]) * one, switched=switched)

    return tuple(join(a, b) for a, b in permutations(range(len(devices)), 2))


def _groups(matrix: _Matrix, codes: tuple[str, ...]) -> NDArray[np.int64]:
    """GPUs that a chain of such connections joins have the same number, `int64[g]`.

    Raises:
        SegueError: if two of them are joined by a longer way, which no tree of buses can be.
    """
    joined = np.array([[code in codes for code in row] for row in matrix.codes])
    groups = connected_components(joined, directed=False)[1]
    for a, b in permutations(range(len(groups)), 2):
        code = matrix.codes[a][b]
        if b < a and groups[a] == groups[b] and code not in codes and not code.startswith("NV"):
            here = f"{matrix.where}: line {matrix.lines[a]}: GPU{matrix.numbers[a]} to GPU{matrix.numbers[b]}"
            raise SegueError(f"{here}: {code}, but others join them by {', '.join(codes)}")
    return groups


def _sockets(matrix: _Matrix) -> NDArray[np.int64]:
    """GPUs of one CPU have the same number; where NVLink hides what is below, the cores near each GPU tell."""
    groups = _groups(matrix, _SAME_SOCKET)
    near = np.unique(matrix.cores, return_inverse=True)[1]
    for a, b in permutations(range(len(groups)), 2):
        code = matrix.codes[a][b]
        if not code.startswith("NV") and (near[a] == near[b]) != (code in _SAME_SOCKET):
            return groups
    return near


def _pcie(device: Device) -> float:
    gpu = GPUS.get(device.model)
    return gpu.pcie_bytes_per_s if gpu else pcie_bytes_per_s(ASSUMED_PCIE_GENERATION)


def _beyond_own_links(matrix: _Matrix, row: int, device: Device) -> bool:
    """Whether a GPU has more links to others together than it has at all, so that a switch must be between."""
    gpu = GPUS.get(device.model)
    counts = [int(code[2:]) for code in matrix.codes[row] if code.startswith("NV")]
    return sum(counts) > (gpu.nvlinks if gpu else ASSUMED_NVLINKS)
