"""`segue profile`: measures a model's ops on this machine, and the links between its devices."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..placement.costs import Profile, microbatch_sizes, roofline
from ..placement.discover import discover
from ..placement.errors import SegueError
from ..placement.executor import launch, probe
from ..placement.gpus import GPUS
from ..placement.graph import Graph
from .tables import format_table
from .zoo.example import build_example

HEADERS = ("kind", "ops", "share", "forward ms", "backward ms", "GFLOP/s", "GB/s", "of roofline")
_COUNTS = ("batch_size", "microbatches", "image_size", "sequence_length", "repeats")


def profile_command(options: argparse.Namespace) -> int:
    """Measure every op of one microbatch, write the profile, print a table by kind of op; returns the exit code.

    Raises:
        SegueError: naming the option that is wrong, or for a model that cannot be built or captured.
    """
    device = _check(options)
    size = microbatch_sizes(options.batch_size, options.microbatches)[0]
    torch.set_num_threads(1)
    example = build_example(
        options.model,
        size,
        seed=options.seed,
        image_size=options.image_size,
        sequence_length=options.sequence_length,
    )
    program = example.capture()
    graph = program.graph
    with tqdm(total=graph.num_ops, unit="op", desc="measuring", dynamic_ncols=True) as bar:

        def done(_: int) -> None:
            bar.update()

        profile = example.measure(program, device, repeats=options.repeats, progress=done)
    profile.save(options.out, graph)
    where = profile.model or ("a CPU core" if device.type == "cpu" else torch.cuda.get_device_name(device))
    print(f"{graph.name}: {graph.num_ops} ops, one microbatch of {graph.batch_size} samples, measured on {where}.")
    print(kind_table(graph, profile))
    print(f"wrote {options.out}")
    if options.topology_out:
        _write_topology(options.topology_out)
    return 0


def kind_table(graph: Graph, profile: Profile) -> str:
    """Forward and backward by kind of op, dearest first, and what they achieve.

    Bytes are those that the ops read and write, twice as many in the backward pass as in the forward (as `roofline` counts
    them). `of roofline` is the roofline's time over the measured one: 100 % where an op is as fast as its product's datasheet
    lets one expect; a profile that is of no product in the table has no such column.
    """
    kinds, of = np.unique(graph.kinds, return_inverse=True)
    differentiated = graph.backward_flops > 0
    traffic = (graph.read_bytes + graph.written_bytes) * (1 + 2 * differentiated)
    expected = roofline(graph, GPUS[profile.model]) if profile.model else None
    sums = {
        "ops": np.bincount(of),
        "forward": np.bincount(of, profile.forward_s),
        "backward": np.bincount(of, profile.backward_s),
        "flops": np.bincount(of, graph.forward_flops + graph.backward_flops),
        "bytes": np.bincount(of, traffic),
        "expected": np.bincount(of, expected.forward_s + expected.backward_s) if expected else np.zeros(len(kinds)),
    }
    total = float(sums["forward"].sum() + sums["backward"].sum())
    order = np.argsort(-(sums["forward"] + sums["backward"]), kind="stable")
    rows = [_row(str(kinds[kind]), {name: column[kind] for name, column in sums.items()}, total) for kind in order]
    rows.append(_row("all", {name: column.sum() for name, column in sums.items()}, total))
    shown = len(HEADERS) if expected else len(HEADERS) - 1
    return format_table([row[:shown] for row in rows], HEADERS[:shown])


def _row(kind: str, sums: dict[str, Any], total_s: float) -> list[Any]:
    seconds = max(float(sums["forward"] + sums["backward"]), 1e-12)
    return [
        kind,
        int(sums["ops"]),
        f"{100 * seconds / max(total_s, 1e-12):.1f} %",
        round(1e3 * float(sums["forward"]), 3),
        round(1e3 * float(sums["backward"]), 3),
        round(float(sums["flops"]) / seconds / 1e9, 2),
        round(float(sums["bytes"]) / seconds / 1e9, 2),
        f"{100 * float(sums['expected']) / seconds:.0f} %",
    ]


def _check(options: argparse.Namespace) -> torch.device:
    """The device to measure on, after a look at everything that would fail only after minutes of measuring."""
    for name in _COUNTS:
        if getattr(options, name) < 1:
            raise SegueError(f"--{name.replace('_', '-')} must be >= 1, got {getattr(options, name)}")
    if options.microbatches > options.batch_size:
        raise SegueError(
            f"--microbatches must be at most --batch-size ({options.batch_size}), got {options.microbatches}"
        )
    for name in ("out", "topology_out"):
        path = getattr(options, name)
        if path and not Path(path).parent.is_dir():
            raise SegueError(f"--{name.replace('_', '-')} {path}: {Path(path).parent} is not a folder")
    if options.topology_out and Path(options.topology_out).suffix not in (".yaml", ".yml", ".json"):
        raise SegueError(f"--topology-out {options.topology_out}: expected a name that ends in .yaml, .yml or .json")
    return _device(options.device)


def _device(name: str) -> torch.device:
    if not name:
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SegueError(f"--device {name!r}: expected cpu or cuda:N") from None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type not in ("cpu", "cuda"):
        raise SegueError(f"--device {name!r}: expected cpu or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise SegueError(f"--device {name!r}: no such device; this machine has {count} CUDA devices")
    return device if device.type == "cpu" else torch.device("cuda", device.index or 0)


def _write_topology(path: str) -> None:
    """Discover the machine, measure its links between one worker a device, and write both."""
    topology = discover()
    if topology.num_devices > 1:
        topology = launch(probe, topology, topology, timeout_s=300.0)[0]
    replace(topology, name=Path(path).stem).save(path)
    devices = ", ".join(f"{device.name} {device.model}".strip() for device in topology.devices)
    print(f"wrote {path}: {devices}" + ("; links measured between workers" if topology.num_devices > 1 else ""))
