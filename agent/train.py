"""`train`: imitation of the teacher, then PPO on random scenarios; or PPO on from given weights on one clock."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecMonitor
from tqdm import tqdm

from ..env import EnvConfig, Scenario, ScenarioSampler, make_vec_env
from ..env.vector import Sampler
from ..placement.clock import Clock
from ..placement.cores import usable_cores
from ..placement.errors import SegueError
from ..placement.graph import Graph
from ..placement.placement import Placement
from .gain import mean_gain
from .imitation import ImitationSettings, imitate_chunk
from .lessons import Teachers
from .network import PlacementNetwork
from .policy import PlacementPolicy
from .pretrained import load_policy, save_policy
from .threads import one_thread


@dataclass(frozen=True)
class TrainingPreset:
    """What a training run is made of.

    Attributes:
        imitation: what comes before PPO; not where weights or a clock are given.
        teacher_devices: most devices in the scenarios that the teacher solves.
        teacher_ops: most ops in the random graphs among them.
        timesteps: environment steps of PPO in all.
        envs: environments side by side.
        rollout: steps in each between two updates.
        chunk: updates between two checkpoints.
        batch_size: samples in a minibatch.
        epochs: passes over a rollout.
        gamma: discount.
        clip: PPO's clipping range.
        learning_rate: at the start; falls to a twentieth in a straight line.
        entropy: weight of the policy's entropy at the start; falls likewise.
        evaluations: scenarios, always the same, on which the policy is judged before PPO and after every chunk of it.
        hidden: width of the network.
        rounds: rounds of message passing.
        history: whether the network sees what was measured.
        env: sizes and rewards of the environment.
    """

    imitation: ImitationSettings = ImitationSettings()  # noqa: RUF009  (frozen)
    teacher_devices: int = 16
    teacher_ops: int = 120
    timesteps: int = 32_768
    envs: int = 16
    rollout: int = 64
    chunk: int = 4
    batch_size: int = 256
    epochs: int = 2
    gamma: float = 0.97
    clip: float = 0.1
    learning_rate: float = 1e-4
    entropy: float = 0.001
    evaluations: int = 48
    hidden: int = 64
    rounds: int = 3
    history: bool = True
    env: EnvConfig = EnvConfig(max_groups=24, max_devices=6)  # noqa: RUF009  (frozen)


NO_IMITATION = ImitationSettings(chunks=0)
PRESETS = {
    "release": TrainingPreset(),
    "without-messages": TrainingPreset(rounds=0),
    "without-history": TrainingPreset(history=False),
    "quick": TrainingPreset(imitation=ImitationSettings(chunks=6, scenarios=32), timesteps=8_192),
    "tiny": TrainingPreset(
        imitation=ImitationSettings(chunks=1, scenarios=4, epochs=2, max_groups=(16,)),
        timesteps=1_024, envs=4, rollout=64, chunk=2, batch_size=128, evaluations=4, hidden=32, rounds=2,
        env=EnvConfig(16, 4),
    ),
    "finetune": TrainingPreset(
        imitation=NO_IMITATION, timesteps=2_048, envs=1, rollout=256, chunk=2, batch_size=64, epochs=4, evaluations=0
    ),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """A trained network and how it went.

    Attributes:
        network: ready to decide.
        timesteps: environment steps taken in all.
        rewards: mean episode reward in each chunk of PPO.
        gains: what greedy episodes of the same scenarios gain, as a mean logarithm of start over best step time, before PPO
            and after each chunk.
        losses: of each chunk of imitation; see `imitate_chunk`.
    """

    network: PlacementNetwork
    timesteps: int
    rewards: tuple[float, ...]
    gains: tuple[float, ...] = ()
    losses: tuple[dict[str, float], ...] = ()


def train(
    preset: str | TrainingPreset = "release",
    seed: int = 0,
    timesteps: int | None = None,
    *,
    clock: Clock | None = None,
    start: Placement | None = None,
    sampler: Sampler | None = None,
    graphs: Sequence[Graph] = (),
    weights: PlacementNetwork | None = None,
    log_dir: str | PathLike | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    progress: bool = True,
    workers: int = 1,
    device: str = "cpu",
) -> TrainingResult:
    """Train a policy by imitation and MaskablePPO; the same arguments give the same weights, resumed or not.

    Neither the number of workers nor where a run was interrupted changes the weights; a GPU changes their last digits.

    Args:
        preset: a name from `PRESETS`, or settings.
        seed: of weights, scenarios and sampled actions.
        timesteps: environment steps in all, instead of the preset's; rounded up to whole rollouts.
        clock: train on this clock alone (measured or simulated) in one environment.
        start: the starting placement with `clock`.
        sampler: draws the scenarios, instead of `ScenarioSampler`.
        graphs: captured graphs that scenarios shall be of, besides random ones.
        weights: where PPO continues from; the network takes their sizes.
        log_dir: folder for checkpoints and `progress.csv`.
        resume: go on from the checkpoint in `log_dir`, if there is one.
        tensorboard: write TensorBoard events to `log_dir`.
        progress: show a bar.
        workers: processes that solve scenarios for the imitation; 0 for one on each core. A sampler has to be picklable for
            several.
        device: where the network is trained: `cpu`, `cuda`, or `auto` for a GPU if there is one.

    Raises:
        SegueError: for an unknown preset, options that need `log_dir`, a checkpoint of another run, fewer than 0 workers, or
            a device that torch does not find.
    """
    settings, workers = _settings(preset, timesteps, weights), _workers(workers)
    if log_dir is None and (resume or tensorboard):
        raise SegueError("train: resume and tensorboard need log_dir")
    if clock is not None:
        settings = replace(settings, envs=1, imitation=NO_IMITATION, evaluations=0)
        sampler = _one(clock, start)
    lessons = sampler or ScenarioSampler(settings.teacher_devices, settings.teacher_ops, tuple(graphs))
    sampler = sampler or ScenarioSampler(settings.env.max_devices, graphs=tuple(graphs))
    folder = Path(log_dir) if log_dir is not None else None
    with one_thread():
        model = _model(settings, seed, sampler, weights, folder if tensorboard else None, find_device(device))
        run = _Run(model, sampler, settings, seed, folder)
        if resume:
            run.restore()
        run.imitate(lessons, workers, progress)
        run.reinforce(progress)
    network = run.network.cpu().eval().requires_grad_(False)
    return TrainingResult(network, run.model.num_timesteps, tuple(run.rewards), tuple(run.gains), tuple(run.losses))


class _Run:
    """A training run: its model, how far it has come, and its folder of checkpoints.

    Args:
        model: what is trained.
        sampler: draws the scenarios of PPO.
        settings: how.
        seed: of everything random.
        folder: of the checkpoints, if there are to be any.
    """

    def __init__(self, model: MaskablePPO, sampler: Sampler, settings: TrainingPreset, seed: int, folder: Path | None):
        self.model, self.sampler, self.settings, self.seed, self.folder = model, sampler, settings, seed, folder
        self.network = _network(model)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), settings.imitation.learning_rate)
        self.losses: list[dict[str, float]] = []
        self.rewards: list[float] = []
        self.gains: list[float] = []

    def imitate(self, lessons: Sampler, workers: int, progress: bool) -> None:
        """Imitation, up to the settings' number of chunks."""
        imitation = self.settings.imitation
        if len(self.losses) == imitation.chunks:
            return
        with (
            Teachers(lessons, imitation, self.seed, workers) as teachers,
            tqdm(total=imitation.chunks, initial=len(self.losses), disable=not progress, unit="chunk") as bar,
        ):
            while len(self.losses) < imitation.chunks:
                index = len(self.losses)
                samples = list(teachers.samples(self.network, index))
                self.losses.append(imitate_chunk(self.network, self.optimizer, samples, imitation, self.seed, index))
                self._write_event("imitation/choice", self.losses[-1]["choice"], index)
                self.checkpoint()
                bar.update()
                bar.set_postfix({key: f"{loss:.3f}" for key, loss in self.losses[-1].items()})

    def reinforce(self, progress: bool) -> None:
        """PPO, up to the settings' number of timesteps."""
        model, timesteps = self.model, self.settings.timesteps
        if not self.gains:
            self._judge()
        with tqdm(total=timesteps, initial=model.num_timesteps, disable=not progress, unit="step") as bar:
            while model.num_timesteps < timesteps:
                self.rewards.append(_chunk(model, self.settings, self.seed, len(self.rewards)))
                bar.update(model.num_timesteps - bar.n)
                self._judge()
                bar.set_postfix(reward=f"{self.rewards[-1]:.3f}")
                self.checkpoint()

    def _judge(self) -> None:
        """Write down how good the policy is by now, if the settings want it judged."""
        if not self.settings.evaluations:
            return
        self.gains.append(mean_gain(self.network, self.sampler, self.settings.env, self.settings.evaluations))
        self._write_event("ppo/gain", self.gains[-1], self.model.num_timesteps)

    def checkpoint(self) -> None:
        """Save all that the rest of the run depends on."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        optimizers = {"imitation": self.optimizer.state_dict(), "ppo": self.model.policy.optimizer.state_dict()}
        torch.save(optimizers, self.folder / "optimizer.pt")
        metadata = {
            "seed": self.seed,
            "settings": repr(self.settings),
            "timesteps": self.model.num_timesteps,
            "rewards": self.rewards,
            "gains": self.gains,
            "losses": self.losses,
        }
        save_policy(self.network, self.folder / "checkpoint.safetensors", metadata)
        with (self.folder / "progress.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["chunk", "choice_loss", "change_error", "value_error", "mean_episode_reward", "greedy_gain"]
            )
            for index, loss in enumerate(self.losses):
                writer.writerow([index, *(f"{loss[key]:.6f}" for key in ("choice", "change", "value")), "", ""])
            for index, reward in enumerate(self.rewards):
                gain = [f"{gain:.6f}" for gain in self.gains[index + 1 : index + 2]]
                writer.writerow([len(self.losses) + index, "", "", "", f"{reward:.6f}", *gain])

    def restore(self) -> None:
        """Go on from the checkpoint in the folder, if there is one.

        Raises:
            SegueError: if it is of another run.
        """
        assert self.folder is not None
        file = self.folder / "checkpoint.safetensors"
        if not file.exists():
            return
        network = load_policy(file)
        record = json.loads(file.with_suffix(".json").read_text())
        if record["settings"] != repr(self.settings) or record["seed"] != self.seed:
            raise SegueError(
                f"{file}: settings: the checkpoint is of another run; use another log_dir or the same arguments"
            )
        self.network.load_state_dict(network.state_dict())
        optimizers = torch.load(self.folder / "optimizer.pt", weights_only=True, map_location="cpu")
        self.optimizer.load_state_dict(optimizers["imitation"])
        self.model.policy.optimizer.load_state_dict(optimizers["ppo"])
        self.model.num_timesteps = int(record["timesteps"])
        self.rewards, self.losses = list(record["rewards"]), list(record["losses"])
        self.gains = list(record["gains"])

    def _write_event(self, name: str, value: float, index: int) -> None:
        if self.model.tensorboard_log is not None:
            from torch.utils.tensorboard import SummaryWriter

            with SummaryWriter(self.model.tensorboard_log) as writer:
                writer.add_scalar(name, value, index)


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
        preset = replace(preset, **weights.arguments, imitation=NO_IMITATION)
    return preset


def _workers(count: int) -> int:
    if count < 0:
        raise SegueError(f"train: workers must be >= 0, got {count}")
    return count or len(usable_cores())


def find_device(name: str) -> torch.device:
    """The device of `train`'s name for it.

    Raises:
        SegueError: if torch does not find it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SegueError(f"train: device {name!r}: {str(error).splitlines()[0]}; use cpu, cuda or auto") from None
    return device


def _one(clock: Clock, start: Placement | None) -> Sampler:
    devices = np.zeros(clock.graph.num_ops, np.int64)
    scenario = Scenario(clock, start or Placement(devices, clock.microbatches))
    return lambda rng: scenario


def _model(
    settings: TrainingPreset,
    seed: int,
    sampler: Sampler,
    weights: PlacementNetwork | None,
    events: Path | None,
    device: torch.device,
) -> MaskablePPO:
    model = MaskablePPO(
        PlacementPolicy,
        VecMonitor(make_vec_env(sampler, settings.envs, seed, settings.env)),
        n_steps=settings.rollout,
        batch_size=settings.batch_size,
        n_epochs=settings.epochs,
        gamma=settings.gamma,
        clip_range=settings.clip,
        policy_kwargs={"network": {"hidden": settings.hidden, "rounds": settings.rounds, "history": settings.history}},
        tensorboard_log=str(events) if events else None,
        seed=seed,
        device=device,
    )
    if events is None:
        # Its own logger would leave an empty folder for every chunk of training.
        model.set_logger(Logger(None, []))
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
