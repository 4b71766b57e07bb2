"""`train`: PPO on random scenarios, or on from given weights on one clock."""

import csv
import json
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecMonitor
from tqdm import tqdm

from ..env import EnvConfig, Scenario, ScenarioSampler, make_vec_env
from ..env.vector import Sampler
from ..placement.clock import Clock
from ..placement.errors import SegueError
from ..placement.placement import Placement
from .network import PlacementNetwork
from .policy import PlacementPolicy
from .pretrained import load_policy, save_policy
from .threads import one_thread


@dataclass(frozen=True)
class TrainingPreset:
    """What a training run is made of.

    Attributes:
        timesteps: environment steps in all.
        envs: environments side by side.
        rollout: steps in each between two updates.
        chunk: updates between two checkpoints.
        batch_size: samples in a minibatch.
        epochs: passes over a rollout.
        gamma: discount.
        learning_rate: at the start; falls to a twentieth in a straight line.
        entropy: weight of the policy's entropy at the start; falls likewise.
        hidden: width of the network.
        rounds: rounds of message passing.
        env: sizes and rewards of the environment.
    """

    timesteps: int = 563_200
    envs: int = 16
    rollout: int = 128
    chunk: int = 10
    batch_size: int = 512
    epochs: int = 4
    gamma: float = 0.98
    learning_rate: float = 1e-3
    entropy: float = 0.01
    hidden: int = 48
    rounds: int = 2
    env: EnvConfig = EnvConfig(max_devices=6)  # noqa: RUF009  (frozen)


PRESETS = {
    "default": TrainingPreset(),
    "quick": TrainingPreset(timesteps=40_960, chunk=4),
    "tiny": TrainingPreset(
        timesteps=4_096, envs=4, rollout=128, chunk=2, batch_size=128, hidden=32, env=EnvConfig(16, 4)
    ),
    "finetune": TrainingPreset(timesteps=2_048, envs=1, rollout=256, chunk=2, batch_size=64, learning_rate=2e-4),
}


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """A trained network and how it went.

    Attributes:
        network: ready to decide.
        timesteps: environment steps taken in all.
        rewards: mean episode reward in each chunk.
    """

    network: PlacementNetwork
    timesteps: int
    rewards: tuple[float, ...]


def train(
    preset: str | TrainingPreset = "default",
    seed: int = 0,
    timesteps: int | None = None,
    *,
    clock: Clock | None = None,
    start: Placement | None = None,
    sampler: Sampler | None = None,
    weights: PlacementNetwork | None = None,
    log_dir: str | PathLike | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    progress: bool = True,
) -> TrainingResult:
    """Train a policy with MaskablePPO; the same arguments give the same weights, resumed or not.

    Args:
        preset: a name from `PRESETS`, or settings.
        seed: of weights, scenarios and sampled actions.
        timesteps: environment steps in all, instead of the preset's; rounded up to whole rollouts.
        clock: train on this clock alone (measured or simulated) in one environment.
        start: the starting placement with `clock`.
        sampler: draws the scenarios, instead of `ScenarioSampler`.
        weights: where to continue from; sizes must be the preset's.
        log_dir: folder for checkpoints and `progress.csv`.
        resume: go on from the checkpoint in `log_dir`, if there is one.
        tensorboard: write TensorBoard events to `log_dir`.
        progress: show a bar.

    Raises:
        SegueError: for an unknown preset, options that need `log_dir`, or a checkpoint of another run.
    """
    settings = _settings(preset, timesteps, weights)
    if log_dir is None and (resume or tensorboard):
        raise SegueError("train: resume and tensorboard need log_dir")
    if clock is not None:
        settings = replace(settings, envs=1)
        sampler = _one(clock, start)
    folder = Path(log_dir) if log_dir is not None else None
    with one_thread():
        model = _model(settings, seed, sampler, weights, folder if tensorboard else None)
        rewards = _restore(model, folder, settings, seed) if folder and resume else []
        with tqdm(total=settings.timesteps, initial=model.num_timesteps, disable=not progress, unit="step") as bar:
            while model.num_timesteps < settings.timesteps:
                rewards.append(_chunk(model, settings, seed, len(rewards)))
                bar.update(model.num_timesteps - bar.n)
                bar.set_postfix(reward=f"{rewards[-1]:.3f}")
                if folder is not None:
                    _checkpoint(model, folder, settings, seed, rewards)
    network = _network(model).eval().requires_grad_(False)
    return TrainingResult(network, model.num_timesteps, tuple(rewards))


def _settings(preset: str | TrainingPreset, timesteps: int | None, weights: PlacementNetwork | None) -> TrainingPreset:
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise SegueError(f"train: no preset {preset!r}; known: {', '.join(PRESETS)}")
        preset = PRESETS[preset]
    if timesteps is not None:
        if timesteps < 1:
            raise SegueError(f"train: timesteps must be >= 1, got {timesteps}")
        preset = replace(preset, timesteps=timesteps)
    if weights is not None:
        preset = replace(preset, hidden=weights.hidden, rounds=weights.rounds)
    return preset


def _one(clock: Clock, start: Placement | None) -> Sampler:
    devices = np.zeros(clock.graph.num_ops, np.int64)
    scenario = Scenario(clock, start or Placement(devices, clock.microbatches))
    return lambda rng: scenario


def _model(
    settings: TrainingPreset, seed: int, sampler: Sampler | None, weights: PlacementNetwork | None, events: Path | None
) -> MaskablePPO:
    sampler = sampler or ScenarioSampler(settings.env.max_devices)
    model = MaskablePPO(
        PlacementPolicy,
        VecMonitor(make_vec_env(sampler, settings.envs, seed, settings.env)),
        n_steps=settings.rollout,
        batch_size=settings.batch_size,
        n_epochs=settings.epochs,
        gamma=settings.gamma,
        policy_kwargs={"hidden": settings.hidden, "rounds": settings.rounds},
        tensorboard_log=str(events) if events else None,
        seed=seed,
        device="cpu",
    )
    if weights is not None:
        _network(model).load_state_dict(weights.state_dict())
    return model


def _network(model: MaskablePPO) -> PlacementNetwork:
    assert isinstance(model.policy, PlacementPolicy)
    return model.policy.network


def _chunk(model: MaskablePPO, settings: TrainingPreset, seed: int, index: int) -> float:
    """Train on until the next checkpoint; every chunk starts new episodes from its own seed, so that runs can resume."""
    left = 1.0 - 0.95 * model.num_timesteps / settings.timesteps
    rate = settings.learning_rate * left
    model.lr_schedule = lambda _: rate
    model.ent_coef = settings.entropy * left
    set_random_seed(seed * 1_000_003 + index)
    assert model.env is not None
    model.env.seed(seed * 1_000_003 + index * 1_009)
    model._last_obs = None
    model.ep_info_buffer = None
    rollouts = -(-(settings.timesteps - model.num_timesteps) // (settings.envs * settings.rollout))
    steps = min(settings.chunk, rollouts) * settings.envs * settings.rollout
    model.learn(steps, reset_num_timesteps=False, tb_log_name="ppo")
    episodes: Any = model.ep_info_buffer
    return float(np.mean([episode["r"] for episode in episodes])) if episodes else float("nan")


def _checkpoint(model: MaskablePPO, folder: Path, settings: TrainingPreset, seed: int, rewards: list[float]) -> None:
    metadata = {"seed": seed, "settings": repr(settings), "timesteps": model.num_timesteps, "rewards": rewards}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.policy.optimizer.state_dict(), folder / "optimizer.pt")
    save_policy(_network(model), folder / "checkpoint.safetensors", metadata)
    with (folder / "progress.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["chunk", "mean_episode_reward"])
        writer.writerows((index, f"{reward:.6f}") for index, reward in enumerate(rewards))


def _restore(model: MaskablePPO, folder: Path, settings: TrainingPreset, seed: int) -> list[float]:
    """Load the checkpoint into `model`; returns the rewards so far."""
    file = folder / "checkpoint.safetensors"
    if not file.exists():
        return []
    network = load_policy(file)
    record = json.loads(file.with_suffix(".json").read_text())
    if record["settings"] != repr(settings) or record["seed"] != seed:
        raise SegueError(
            f"{file}: settings: the checkpoint is of another run; use another log_dir or the same arguments"
        )
    _network(model).load_state_dict(network.state_dict())
    model.policy.optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
    model.num_timesteps = int(record["timesteps"])
    return list(record["rewards"])
