"""`segue train`: trains a placement policy, in the simulator or on a live run."""

import argparse
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch.distributed as dist
from torch import nn

from ..agent.pretrained import load_policy, save_policy
from ..agent.train import find_device, train
from ..placement.errors import SegueError
from ..placement.executor import Executor, MeasuredClock, launch, probe
from ..placement.placement import Placement
from ..placement.planners import plan
from .data import load_data
from .graph_pool import load_pool
from .job import make_model, make_optimizer, run_batches
from .run_config import RunConfig, find_topology

ENOUGH_STEPS = 10**9
"""A live training has as many batches as the policy asks for."""


def train_policy(options: argparse.Namespace) -> int:
    """Train and save a policy; returns the exit code.

    Raises:
        SegueError: for an unknown preset, model, topology or policy.
    """
    if options.timesteps < 0:
        raise SegueError(f"--timesteps must be >= 1, got {options.timesteps}")
    if Path(options.out).suffix != ".safetensors":
        raise SegueError(f"--out {options.out}: the file's name must end in .safetensors")
    if options.workers < 0:
        raise SegueError(f"--workers must be >= 0, got {options.workers}")
    if options.tensorboard and not options.log_dir:
        raise SegueError("--tensorboard needs --log-dir")
    if options.clock == "measured":
        return _on_a_live_run(options)
    # Before graphs are captured for minutes.
    find_device(options.device)
    folder = options.graphs or (Path(options.log_dir) / "graphs" if options.log_dir else Path("graphs"))
    pool = load_pool(folder, options.profiles)
    result = train(
        options.preset or "release",
        options.seed,
        options.timesteps or None,
        graphs=[graph for graphs in pool.training.values() for graph in graphs],
        weights=load_policy(options.policy) if options.policy else None,
        log_dir=options.log_dir or None,
        resume=bool(options.log_dir),
        tensorboard=options.tensorboard,
        workers=options.workers,
        device=options.device,
    )
    command = f"segue train --preset {options.preset or 'release'} --seed {options.seed}"
    metadata = {
        "command": command + (f" --timesteps {options.timesteps}" if options.timesteps else ""),
        "timesteps": result.timesteps,
        "versions": {name: version(name) for name in ("torch", "stable-baselines3", "sb3-contrib")},
        "graphs": sorted({graph.name for graphs in pool.training.values() for graph in graphs}),
        "choice_loss_by_chunk": [round(loss["choice"], 4) for loss in result.losses],
        "mean_episode_reward_by_chunk": [round(reward, 4) for reward in result.rewards],
        "greedy_gain_by_chunk": [round(gain, 4) for gain in result.gains],
    }
    save_policy(result.network, options.out, metadata)
    print(f"segue: {result.timesteps} steps; mean episode reward {result.rewards[-1]:.3f}; saved {options.out}")
    return 0


def _on_a_live_run(options: argparse.Namespace) -> int:
    topology = find_topology(options.topology)
    load_policy(options.policy or None)
    config = RunConfig(
        model=options.model,
        data=options.data,
        topology=topology.to_record(),
        start=options.start,
        agent=True,
        steps=ENOUGH_STEPS,
        batch_size=64,
        microbatches=4,
        image_size=32,
        learning_rate=1e-3,
        seed=options.seed,
        slow=(),
        policy=options.policy,
        profile="",
        evaluations=1,
        checkpoint_every=ENOUGH_STEPS,
        run_dir="",
    )
    make_model(config, load_data(config.data, config.image_size))
    steps, best = launch(train_live, topology, config, options.preset or "finetune", options.timesteps, options.out)[0]
    kind = "+".join(sorted({device.kind for device in topology.devices}))
    print(f"segue: {steps} real training steps ({kind}); shortest step {best * 1e3:.0f} ms; saved {options.out}")
    return 0


def train_live(config: RunConfig, preset: str, timesteps: int, out: str) -> tuple[int, float]:
    """Fine-tune the policy on measured step times; called on every worker.

    Every placement that the policy tries is at least one real step of the model's training.

    Returns:
        Training steps that were done, and the shortest measured step in seconds.
    """
    data = load_data(config.data, config.image_size)
    model = make_model(config, data)
    executor = Executor(
        model,
        optimizer=make_optimizer(config, model),
        loss_fn=nn.CrossEntropyLoss(),
        example_batch=next(run_batches(config, data)),
        topology=probe(config.devices()),
        microbatches=config.microbatches,
        seed=config.seed,
    )
    clock = MeasuredClock(executor, run_batches(config, data))
    if dist.get_rank() != 0:
        clock.serve()
        return 0, 0.0
    start = Placement(np.asarray(plan(config.start, executor.clock(), seed=config.seed).devices), config.microbatches)
    weights = load_policy(config.policy or None)
    result = train(preset, config.seed, timesteps or None, clock=clock, start=start, weights=weights)
    clock.close()
    command = f"segue train --clock measured --seed {config.seed} --model {config.model}"
    save_policy(result.network, out, {"command": command, "timesteps": result.timesteps})
    return len(clock.losses), clock.shortest_s
