import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

import segue.agent.train as module
from segue.agent.imitation import ImitationSettings, imitate_chunk
from segue.agent.lessons import Teachers
from segue.agent.network import PlacementNetwork
from segue.agent.pretrained import same_weights
from segue.agent.teacher import TeacherSettings
from segue.agent.train import NO_IMITATION, PRESETS, TrainingPreset, train
from segue.env import EnvConfig, PlacementEnv, Scenario, ScenarioSampler
from segue.placement.clock import SimulatedClock
from segue.placement.costs import make_costs
from segue.placement.errors import SegueError
from segue.placement.graph import make_graph
from segue.placement.placement import Placement
from segue.placement.topology import Device, Topology, uniform_links

TEACHER = TeacherSettings(evaluations=60, snapshots=(1, 20), perturbations=(1,), wanderings=(1,), moves=24)
IMITATION = ImitationSettings(2, 2, 1, 16, max_groups=(12,), own_states=1, teacher=TEACHER)
SHORT = TrainingPreset(
    imitation=IMITATION, teacher_devices=3, teacher_ops=20, timesteps=384, envs=2, rollout=64, chunk=1, batch_size=64,
    epochs=2, evaluations=2, hidden=16, rounds=2, env=EnvConfig(12, 3),
)  # fmt: skip


def tiny_clock():
    """Four ops in a chain on a slow and a fast device: 16 placements.

    The slow device has to keep the first op, since only its output is light; each move on the way costs time at first.
    """
    flops = np.array([4e8, 4e8, 4e8, 4e8])
    edges, output = [(0, 1), (1, 2), (2, 3)], np.array([1e4, 4e7, 4e7, 1e4])
    graph = make_graph("tiny", edges, forward_flops=flops, backward_flops=2 * flops, output_bytes=output)
    devices = (Device("slow", "emulated", 1e9, 1.0), Device("fast", "emulated", 1e9, 3.0))
    places = Topology("tiny", devices, uniform_links(["slow", "fast"], 1e-4, 1e9))
    return SimulatedClock(graph, places, make_costs(graph, places), (1,) * 8)


@functools.cache
def trained(seed):
    """An uninterrupted training, shared by the tests that only look at it."""
    return train(SHORT, seed, progress=False)


def test_training_without_a_folder_leaves_no_logs(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    train(replace(SHORT, imitation=NO_IMITATION, timesteps=128, evaluations=0), 0, progress=False)
    assert not list(tmp_path.glob("SB3*"))


def act(network, env):
    """One episode of likeliest actions; returns its last info."""
    obs, info = env.reset()
    terminated = False
    while not terminated:
        with torch.no_grad():
            logits = network({key: torch.from_numpy(value)[None] for key, value in obs.items()})[0][0]
        logits[torch.from_numpy(~env.action_masks())] = -np.inf
        obs, _, terminated, _, info = env.step(int(logits.argmax()))
    return info


@pytest.mark.slow
def test_ppo_finds_the_optimum_of_a_tiny_instance():
    clock, start = tiny_clock(), Placement(np.zeros(4, np.int64), 8)
    times = sorted(clock.step_time(np.array(devices)) for devices in itertools.product(range(2), repeat=4))
    config = EnvConfig(max_groups=4, max_devices=2, max_edges=4, horizon=4)
    settings = TrainingPreset(
        imitation=NO_IMITATION,
        timesteps=4_096,
        envs=8,
        rollout=32,
        chunk=4,
        batch_size=64,
        epochs=6,
        gamma=1.0,
        learning_rate=2e-3,
        entropy=0.1,
        clip=0.2,
        hidden=24,
        rounds=1,
        env=config,
    )
    network = train(settings, seed=0, sampler=lambda rng: Scenario(clock, start), progress=False).network
    info = act(network, PlacementEnv(clock, start, config=config))
    assert clock.step_time(start.devices) > 1.5 * times[0]
    assert info["best_step_time_s"] == pytest.approx(times[0], rel=0.02)


@pytest.mark.slow
def test_imitation_learns_what_moves_are_worth():
    settings = replace(IMITATION, chunks=6, scenarios=12, epochs=4, learning_rate=3e-3)
    network = PlacementNetwork(24, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    sampler = ScenarioSampler(3, 20)
    teachers = Teachers(sampler, settings, 0)
    losses = []
    for index in range(6):
        samples = list(teachers.samples(network, index))
        losses.append(imitate_chunk(network, optimizer, samples, settings, 0, index))
    assert losses[-1]["choice"] < 0.8 * losses[0]["choice"]
    assert losses[-1]["change"] < losses[0]["change"]


def test_one_seed_gives_one_policy():
    again, other = (train(SHORT, seed, progress=False).network for seed in (1, 2))
    assert same_weights(trained(1).network, again)
    assert not same_weights(trained(1).network, other)


def test_a_number_of_workers_or_a_device_that_there_is_not_is_refused():
    with pytest.raises(SegueError, match="workers must be >= 0, got -1"):
        train(SHORT, 1, workers=-1)
    with pytest.raises(SegueError, match=r"device 'gpu'.* use cpu, cuda or auto"):
        train(SHORT, 1, device="gpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_network_trained_on_a_gpu_is_returned_on_the_cpu_and_close_to_that_of_a_cpu():
    found = train(SHORT, 1, progress=False, device="cuda")
    assert {weight.device.type for weight in found.network.parameters()} == {"cpu"}
    assert found.losses[0]["choice"] == pytest.approx(trained(1).losses[0]["choice"], rel=0.05)


@pytest.mark.parametrize("part", ["imitate_chunk", "_chunk"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path, part):
    class Interrupted(Exception):
        pass

    whole = trained(1)
    calls = itertools.count()

    def once(*args):
        if next(calls) == 1:
            raise Interrupted
        return chunk(*args)

    chunk = getattr(module, part)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, part, once)
        with pytest.raises(Interrupted):
            train(SHORT, 1, log_dir=tmp_path, progress=False)
    resumed = train(SHORT, 1, log_dir=tmp_path, resume=True, progress=False)
    assert resumed.timesteps == whole.timesteps == SHORT.timesteps
    assert same_weights(resumed.network, whole.network)
    assert resumed.rewards == pytest.approx(whole.rewards, nan_ok=True)
    assert resumed.losses == whole.losses
    assert resumed.gains == whole.gains
    assert len(whole.gains) == 1 + len(whole.rewards)
    with pytest.raises(SegueError, match="another run"):
        train(SHORT, 2, log_dir=tmp_path, resume=True, progress=False)


def test_training_continues_on_any_clock_from_given_weights():
    class Measured:
        """As a clock on a real run: no costs, no shortcuts."""

        def __init__(self, inner):
            self.graph, self.topology, self.microbatches = inner.graph, inner.topology, inner.microbatches
            self.step = inner.step

    weights = train(SHORT, 0, 128, progress=False).network
    start = Placement(np.arange(4) % 2, 8)
    result = train(SHORT, 0, 128, clock=Measured(tiny_clock()), start=start, weights=weights, progress=False)
    assert result.timesteps == 128
    assert not same_weights(result.network, weights)
    assert result.losses == ()


def test_wrong_arguments_are_refused():
    with pytest.raises(SegueError, match="no preset 'fast'; known: release"):
        train("fast")
    with pytest.raises(SegueError, match="timesteps must be >= 1"):
        train("tiny", timesteps=0)
    with pytest.raises(SegueError, match="need log_dir"):
        train("tiny", resume=True)
    assert set(PRESETS) >= {"release", "quick", "finetune"}
