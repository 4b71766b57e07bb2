"""From the options of `segue compare` and `segue place` to a clock: the model (or workload), the devices, the costs."""

import argparse
from dataclasses import dataclass, replace

import torch
from torch.utils import _pytree as pytree

from ..placement.captured import Captured, capture_any
from ..placement.clock import SimulatedClock
from ..placement.costs import Profile, make_costs, microbatch_sizes
from ..placement.errors import SegueError
from ..placement.objective_clock import OBJECTIVES, make_clock
from ..placement.topology import Topology
from ..placement.workload import Workload, read_workload
from ..placement.workload_clock import WorkloadClock
from .planning_options import COSTS, LARGE_PARAMETERS
from .run_config import find_topology
from .zoo.example import Example, build_example


@dataclass(frozen=True, eq=False)
class PlanningProblem:
    """What is to be placed, and the clock that says how good a placement is.

    Attributes:
        clock: prices placements.
        objective: what it minimises: one of `OBJECTIVES`.
        notes: how the graph and the costs came about, a sentence each.
        batch_size: samples a step.
        microbatches: what a run with this placement must be started with.
        profile: measured op times, if the costs rest on some.
        executable: whether the executor can run the graph; a traced one it cannot.
        workload: of the public benchmark, if it is one instead of a model.
    """

    clock: SimulatedClock
    objective: str
    notes: tuple[str, ...]
    batch_size: int = 1
    microbatches: int = 1
    profile: Profile | None = None
    executable: bool = False
    workload: Workload | None = None


def check_counts(options: argparse.Namespace, names: tuple[str, ...]) -> None:
    """Raise `SegueError` naming the first option that must be at least 1 (or the seed at least 0) and is not."""
    for name, least in (*((name, 1) for name in names), ("seed", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise SegueError(f"--{name.replace('_', '-')} must be >= {least}, got {value}")


def make_problem(options: argparse.Namespace) -> PlanningProblem:
    """Read or capture the graph, find its costs, and make the objective's clock.

    Args:
        options: those of `segue compare`, parsed.

    Raises:
        SegueError: naming the option, file or model that is wrong.
    """
    check_counts(options, ("batch_size", "microbatches", "image_size", "sequence_length"))
    if options.costs not in COSTS:
        raise SegueError(f"--costs {options.costs!r}: no such costs; known: {', '.join(COSTS)}")
    if options.objective not in OBJECTIVES:
        raise SegueError(f"--objective {options.objective!r}: no such objective; known: {', '.join(OBJECTIVES)}")
    return _workload_problem(options) if options.graph else _model_problem(options)


def _workload_problem(options: argparse.Namespace) -> PlanningProblem:
    workload = read_workload(options.graph)
    clock = WorkloadClock(workload, options.objective)
    note = f"{workload.name}: {workload.num_nodes} nodes, {workload.accelerators} accelerators, {workload.cpus} CPUs"
    return PlanningProblem(clock, options.objective, (note, "costs: the workload's own"), workload=workload)


def _model_problem(options: argparse.Namespace) -> PlanningProblem:
    topology = find_topology(options.topology)
    torch.set_num_threads(1)
    example, batch_size = _example(options)
    microbatches = min(options.microbatches, batch_size)
    sizes = microbatch_sizes(batch_size, microbatches)
    parameters = sum(tensor.numel() for tensor in example.step.parameters())
    captured = capture_any(example.step, (example.batch,), name=example.name, prefix="model.")
    graph = captured.graph
    profile = _profile(options, captured, example, parameters)
    clock = make_clock(graph, topology, make_costs(graph, topology, profile), sizes, options.objective)
    notes = (
        f"{graph.name}: {graph.num_ops} ops, {parameters / 1e6:.1f} M parameters; batch {batch_size} in {len(sizes)} "
        f"microbatches; {topology.num_devices} devices ({topology.name})",
        _capture_note(captured),
        f"costs: {_costs_note(topology, profile, bool(options.profile))}",
    )
    return PlanningProblem(
        clock, options.objective, notes, batch_size, microbatches, profile, captured.program is not None
    )


def _example(options: argparse.Namespace) -> tuple[Example, int]:
    """The model with a batch of one microbatch, on the meta device where that is enough; and the samples of a whole batch."""
    sizes = {"image_size": options.image_size, "sequence_length": options.sequence_length, "seed": options.seed}
    if ".py:" in options.model:
        return _user_example(options)
    samples = microbatch_sizes(options.batch_size, min(options.microbatches, options.batch_size))[0]
    example = build_example(options.model, samples, **sizes, device="meta")
    parameters = sum(tensor.numel() for tensor in example.step.parameters())
    wants_values = options.costs == "measured" or (options.costs == "auto" and not options.profile)
    if wants_values and (parameters <= LARGE_PARAMETERS or options.costs == "measured"):
        example = build_example(options.model, samples, **sizes, device="cpu")
    return example, options.batch_size


def _user_example(options: argparse.Namespace) -> tuple[Example, int]:
    """As `_example` for somebody's own file, built once and as it stands; its batch may be smaller than asked for."""
    example = build_example(options.model, options.batch_size, seed=options.seed)
    leaves = [leaf for leaf in pytree.tree_leaves(example.batch) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    total = max((leaf.shape[0] for leaf in leaves), default=1)
    samples = microbatch_sizes(total, min(options.microbatches, total))[0]

    def first(leaf: torch.Tensor) -> torch.Tensor:
        return leaf[:samples] if leaf.dim() and leaf.shape[0] == total else leaf

    return replace(example, batch=pytree.tree_map_only(torch.Tensor, first, example.batch)), total


def _profile(options: argparse.Namespace, captured: Captured, example: Example, parameters: int) -> Profile | None:
    """Op times from a file or measured here; `None` for a roofline."""
    if options.profile:
        return Profile.load(options.profile, captured.graph)
    if options.costs == "roofline" or (options.costs == "auto" and parameters > LARGE_PARAMETERS):
        return None
    if captured.program is None:
        if options.costs == "measured":
            raise SegueError(f"--costs measured: {captured.graph.name} has no single ops to time; use --costs roofline")
        return None
    return example.measure(captured.program)


def _capture_note(captured: Captured) -> str:
    if captured.method == "export":
        return "captured with torch.export"
    return f"torch.export refused ({captured.reason}); traced at module granularity"


def _costs_note(topology: Topology, profile: Profile | None, from_file: bool) -> str:
    models = ", ".join(dict.fromkeys(device.model for device in topology.devices if device.model))
    source = "a profile file" if from_file else "on a CPU core of this machine"
    if profile is None:
        return f"roofline of {models or 'a reference core'} (nothing was measured)"
    if models:
        return f"roofline of {models}, scaled by what was measured {'in ' if from_file else ''}{source}"
    return f"{profile.source} {'in ' if from_file else ''}{source}, divided by each device's speed"
