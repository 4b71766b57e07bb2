import time
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from segue.env import EnvConfig, PlacementEnv, ScenarioSampler, make_vec_env
from segue.placement.clock import SimulatedClock, StepReport
from segue.placement.costs import make_costs
from segue.placement.errors import SegueError
from segue.placement.graph import make_graph
from segue.placement.placement import Placement
from segue.placement.topology import Device, Topology, uniform_links

CONFIG = EnvConfig(max_devices=4)


def topology(speeds, memory=1e9, bandwidth=1e9):
    devices = tuple(Device(f"dev{i}", "emulated", memory, speed) for i, speed in enumerate(speeds))
    return Topology("test", devices, uniform_links([d.name for d in devices], 1e-5, bandwidth))


def chain_clock(speeds=(1.0, 2.0), num_ops=6, microbatches=2, **kwargs):
    graph = make_graph(
        "chain",
        [(i, i + 1) for i in range(num_ops - 1)],
        forward_flops=2e8,
        backward_flops=4e8,
        output_bytes=1e3,
        parameter_bytes=1e6,
    )
    places = topology(speeds, **kwargs)
    return SimulatedClock(graph, places, make_costs(graph, places), (1,) * microbatches)


def play(env, seed, steps=1000):
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=seed)
    trail = [obs]
    for _ in range(steps):
        obs, reward, terminated, truncated, info = env.step(rng.choice(np.flatnonzero(env.action_masks())))
        trail.append((obs, reward, info["step_time_s"]))
        if terminated:
            break
    assert not truncated
    return trail


def test_gymnasium_and_stable_baselines_accept_the_environment():
    env = gymnasium.make("segue.env:segue/Placement-v0", config=CONFIG)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(env.unwrapped, skip_render_check=True)
        sb3_check_env(env.unwrapped)


def test_one_seed_gives_one_episode():
    one, other = (play(PlacementEnv(config=CONFIG), seed=5) for _ in range(2))
    assert len(one) == len(other)
    for a, b in zip(one[1:], other[1:], strict=True):
        assert a[1:] == b[1:]
        assert all(np.array_equal(a[0][key], b[0][key]) for key in a[0])


def test_observations_stay_in_their_space_and_masks_hold():
    env = PlacementEnv(config=CONFIG)
    rng = np.random.default_rng(0)
    for seed in range(8):
        obs, _ = env.reset(seed=seed)
        terminated = False
        while not terminated:
            assert env.observation_space.contains(obs)
            mask = env.action_masks()
            assert np.array_equal(mask, obs["action_mask"] > 0)
            assert mask[0]
            assert not mask[env.state.problem.num_devices + 1 :].any()
            action = rng.choice(np.flatnonzero(mask))
            before = env.state.devices
            obs, _, terminated, _, info = env.step(action)
            assert (action == 0) == np.array_equal(before, env.state.devices)
        assert info["best_step_time_s"] <= info["step_time_s"] or not info["feasible"]


def test_an_excluded_action_keeps_the_unit():
    env = PlacementEnv(chain_clock(), config=CONFIG)
    env.reset()
    assert not env.action_masks()[1]  # everything is on device 0 already
    _, reward, *_ = env.step(1)
    assert reward == 0.0
    assert not env.state.devices.any()


def test_a_move_that_cannot_hold_its_state_is_masked():
    clock = chain_clock(memory=5e6)  # one op's parameters, gradient and Adam state take 4 MB
    env = PlacementEnv(clock, Placement(np.arange(6) % 2, 2), config=CONFIG)
    env.reset()
    for _ in range(env.num_steps):
        assert not env.action_masks()[1:].any()
        env.step(0)


def test_faster_is_rewarded_slower_is_not():
    env = PlacementEnv(chain_clock(speeds=(1.0, 4.0)), config=CONFIG)
    _, info = env.reset()
    before = info["step_time_s"]
    _, reward, _, _, info = env.step(2)
    moved = env.state.devices.mean()
    expected = np.log(before / info["step_time_s"]) - CONFIG.move_weight * moved
    assert reward == pytest.approx(expected)
    slow = PlacementEnv(chain_clock(speeds=(4.0, 0.5)), config=CONFIG)
    slow.reset()
    assert slow.step(2)[1] < 0


def test_overflow_is_penalised_and_given_back():
    graph = make_graph("two", [(0, 1)], forward_flops=2e8, backward_flops=4e8, saved_bytes=8e6, output_bytes=1.0)
    places = topology((1.0, 1.0), memory=1e7)
    clock = SimulatedClock(graph, places, make_costs(graph, places))
    env = PlacementEnv(clock, Placement(np.array([0, 1])), config=CONFIG)
    env.reset()
    _, entering, _, _, info = env.step(2)
    assert not info["feasible"]
    assert entering < -CONFIG.overflow_penalty
    assert np.array_equal(info["best_placement"].devices, [0, 1])
    _, leaving, _, _, info = env.step(1)
    assert info["feasible"]
    assert leaving + entering == pytest.approx(0.0)


def test_the_clock_is_asked_only_when_the_placement_changed():
    class Counting:
        def __init__(self, inner):
            self.graph, self.topology, self.microbatches = inner.graph, inner.topology, inner.microbatches
            self.inner, self.calls = inner, 0

        def step(self, placement) -> StepReport:
            self.calls += 1
            return self.inner.step(placement)

    clock = Counting(chain_clock())
    env = PlacementEnv(clock, config=CONFIG)
    env.reset()
    for _ in range(env.num_steps):
        env.step(0)
    assert clock.calls == 1
    env.reset()
    env.step(2)
    assert clock.calls == 3


def test_relabelling_devices_only_permutes_the_observation():
    order = np.array([2, 0, 1])  # new label of each device
    clock = chain_clock(speeds=(1.0, 2.0, 3.0))
    places = clock.topology
    devices = tuple(places.devices[np.flatnonzero(order == i)[0]] for i in range(3))
    other_places = Topology("relabelled", devices, places.links)
    other = SimulatedClock(clock.graph, other_places, make_costs(clock.graph, other_places), clock.sizes)
    start = np.array([0, 0, 1, 1, 2, 2])
    one = PlacementEnv(clock, Placement(start, 2), config=CONFIG)
    two = PlacementEnv(other, Placement(order[start], 2), config=CONFIG)
    a, b = one.reset()[0], two.reset()[0]
    rng = np.random.default_rng(1)
    for _ in range(one.num_steps):
        for key in ("devices", "device_mask", "moves"):
            np.testing.assert_allclose(a[key][:3], b[key][order], atol=1e-5)
        np.testing.assert_allclose(a["placement"][:, :3], b["placement"][:, order], atol=1e-6)
        np.testing.assert_allclose(a["links"][:3, :3], b["links"][np.ix_(order, order)], atol=1e-5)
        for key in ("groups", "edges", "edge_features", "unit", "step"):
            np.testing.assert_allclose(a[key], b[key], atol=1e-5)
        action = rng.choice(np.flatnonzero(one.action_masks()))
        a = one.step(action)[0]
        b = two.step(0 if action == 0 else order[action - 1] + 1)[0]


def test_large_graphs_are_coarsened_to_fit():
    env = PlacementEnv(chain_clock(num_ops=200), config=EnvConfig(max_groups=12, max_devices=2, max_edges=8))
    obs, _ = env.reset()
    assert obs["group_mask"].sum() == 12
    assert obs["edge_mask"].sum() == 8


def test_too_many_devices_are_refused():
    with pytest.raises(SegueError, match=r"5 devices, but EnvConfig\.max_devices is 4"):
        PlacementEnv(chain_clock(speeds=(1.0,) * 5), config=CONFIG).reset()


def test_a_graph_without_costs_is_refused():
    graph, places = make_graph("free", [(0, 1)]), topology((1.0, 1.0))
    with pytest.raises(SegueError, match="graph free: every op takes 0 seconds"):
        PlacementEnv(SimulatedClock(graph, places, make_costs(graph, places)), config=CONFIG).reset()


def test_sizes_out_of_range_are_refused():
    with pytest.raises(SegueError, match="max_groups must be >= 1, got 0"):
        EnvConfig(max_groups=0)


def test_vectorised_environments_draw_new_scenarios():
    env = make_vec_env(ScenarioSampler(4), 3, seed=0, config=CONFIG)
    obs = env.reset()
    assert obs["groups"].shape[0] == 3
    assert len({int(mask.sum()) for mask in obs["group_mask"]} | {float(s[-2]) for s in obs["step"]}) > 1
    again = make_vec_env(ScenarioSampler(4), 3, seed=0, config=CONFIG).reset()
    assert all(np.array_equal(obs[key], again[key]) for key in obs)


def test_a_thousand_steps_take_about_a_second():
    env = PlacementEnv(chain_clock(num_ops=40, speeds=(1.0, 2.0, 3.0, 4.0)), config=EnvConfig(max_groups=40))
    play(env, 0)
    start, steps = time.perf_counter(), 0
    while steps < 500:
        steps += len(play(env, steps)) - 1
    assert steps / (time.perf_counter() - start) > 200  # about 1500 on an idle core
