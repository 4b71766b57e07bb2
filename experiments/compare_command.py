"""`segue compare`: the agent beside manual configurations and planners, on one model and topology."""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..agent.proposer import Request, answer
from ..placement.capture import capture_program
from ..placement.clock import SimulatedClock
from ..placement.costs import Profile, make_costs, microbatch_sizes
from ..placement.errors import SegueError
from ..placement.files import write_text
from ..placement.placement import Placement
from ..placement.planners import Plan, plan
from ..placement.profile import measure_profile
from ..placement.training_step import TrainingStep
from .compare import compare, comparison_table
from .models import build_model, load_user_model
from .run_config import find_topology

CLASSES = 10


def compare_command(options: argparse.Namespace) -> int:
    """Measure the model's ops on this machine, run every planner and the agent, print the table; returns the exit code.

    Raises:
        SegueError: for an unknown model, topology or policy, or a file that cannot be written.
    """
    for name in ("batch_size", "microbatches", "image_size", "evaluations"):
        if getattr(options, name) < 1:
            raise SegueError(f"--{name.replace('_', '-')} must be >= 1, got {getattr(options, name)}")
    if options.json and not Path(options.json).parent.is_dir():
        raise SegueError(f"--json {options.json}: {Path(options.json).parent} is not a folder")
    clock = _clock(options)
    rows = compare(clock, ["all"], options.seed, options.evaluations, [_agent(clock, options)])
    if options.json:
        write_text(options.json, json.dumps(rows, indent=1) + "\n")
    print(f"{clock.graph.name}: {clock.graph.num_ops} ops on {clock.topology.name}; op times measured on a CPU core.")
    print(comparison_table(rows))
    return 0


def _clock(options: argparse.Namespace) -> SimulatedClock:
    sizes = microbatch_sizes(options.batch_size, min(options.microbatches, options.batch_size))
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    if ".py:" in options.model:
        model, batch = load_user_model(options.model)
        example = tuple(tensor[: sizes[0]] for tensor in batch)
    else:
        model = build_model(options.model, options.image_size, 1, CLASSES, options.seed)
        images = torch.randn(sizes[0], 1, options.image_size, options.image_size)
        example = (images, torch.randint(0, CLASSES, (sizes[0],)))
    topology = find_topology(options.topology)
    step = TrainingStep(model.train(), nn.CrossEntropyLoss())
    program = capture_program(step, (example,), name=options.model, prefix="model.")
    if options.profile:
        profile = Profile.load(options.profile, program.graph)
    else:
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        profile = measure_profile(program, {k: v.detach() for k, v in tensors.items()}, list(example))
    return SimulatedClock(program.graph, topology, make_costs(program.graph, topology, profile), sizes)


def _agent(clock: SimulatedClock, options: argparse.Namespace) -> Plan:
    """The agent's row: it starts from `equal-layers` and the cheap planners' answers, which count as evaluations."""
    begin = time.perf_counter()
    proposal = answer(
        Request(
            clock=clock,
            start=Placement(plan("equal-layers", clock, seed=options.seed).devices, clock.microbatches),
            move_seconds=np.zeros(clock.graph.num_ops),
            pause_s=0.0,
            horizon_steps=1,
            evaluations=options.evaluations,
            seed=options.seed,
            policy_path=options.policy,
        )
    )
    step_time, overflow = clock.evaluate(proposal.placement.devices)
    return Plan(
        planner="agent",
        devices=proposal.placement.devices,
        value_s=step_time,
        overflow_bytes=overflow,
        evaluations=proposal.evaluations,
        planning_s=time.perf_counter() - begin,
    )
