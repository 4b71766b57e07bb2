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


def everything_to(env, device):
    """The action that moves all groups to a device, when all are on one."""
    row = int(env.state.member.sum(axis=1).argmax())
    assert env.state.member[row].all()
    return 1 + row * env.config.max_devices + device


def single_to(env, group, device):
    """The action that moves one group to a device."""
    member = np.zeros(env.state.problem.num_groups)
    member[group] = 1
    row = int(np.flatnonzero((env.state.member == member).all(axis=1))[0])
    return 1 + row * env.config.max_devices + device


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
            grid = mask[1:].reshape(CONFIG.max_units, CONFIG.max_devices)
            assert not grid[len(env.state.member) :].any()
            assert not grid[:, env.state.problem.num_devices :].any()
            action = rng.choice(np.flatnonzero(mask))
            before = env.state.devices
            obs, _, terminated, _, info = env.step(action)
            assert (action == 0) == np.array_equal(before, env.state.devices)
        assert info["best_step_time_s"] <= info["step_time_s"] or not info["feasible"]


def test_an_episode_ends_when_the_agent_stops_or_at_the_horizon():
    env = PlacementEnv(chain_clock(), config=EnvConfig(max_devices=4, horizon=3))
    env.reset()
    assert env.step(0)[2]
    env.reset()
    ends = [env.step(everything_to(env, device))[2] for device in (1, 0, 1)]
    assert ends == [False, False, True]


def test_an_excluded_action_changes_nothing():
    env = PlacementEnv(chain_clock(), config=CONFIG)
    env.reset()
    action = everything_to(env, 0)  # where it is already
    assert not env.action_masks()[action]
    _, reward, terminated, *_ = env.step(action)
    assert (reward, terminated) == (0.0, False)
    assert not env.state.devices.any()


def test_a_move_that_cannot_hold_its_state_is_masked():
    clock = chain_clock(memory=5e6)  # one op's parameters, gradient and Adam state take 4 MB
    env = PlacementEnv(clock, Placement(np.arange(6) % 2, 2), config=CONFIG)
    env.reset()
    assert not env.action_masks()[1:].any()


def test_faster_is_rewarded_slower_is_not():
    env = PlacementEnv(chain_clock(speeds=(1.0, 4.0)), config=CONFIG)
    _, info = env.reset()
    before = info["step_time_s"]
    _, reward, _, _, info = env.step(everything_to(env, 1))
    expected = np.log(before / info["step_time_s"]) - CONFIG.move_weight
    assert reward == pytest.approx(expected)
    slow = PlacementEnv(chain_clock(speeds=(4.0, 0.5)), config=CONFIG)
    slow.reset()
    assert slow.step(everything_to(slow, 1))[1] < 0


def test_the_border_between_two_devices_can_be_shifted():
    start = np.array([0, 0, 0, 0, 1, 1])
    env = PlacementEnv(chain_clock(), Placement(start, 2), config=CONFIG)
    env.reset()
    for wanted in ([2, 3], [1, 2, 3], [0, 1], [0, 1, 2], [4, 5]):
        rows = [row for row, member in enumerate(env.state.member) if np.flatnonzero(member).tolist() == wanted]
        assert rows, wanted


def test_overflow_is_penalised_and_given_back():
    graph = make_graph("two", [(0, 1)], forward_flops=2e8, backward_flops=4e8, saved_bytes=8e6, output_bytes=1.0)
    places = topology((1.0, 1.0), memory=1e7)
    clock = SimulatedClock(graph, places, make_costs(graph, places))
    env = PlacementEnv(clock, Placement(np.array([0, 1])), config=CONFIG)
    env.reset()
    _, entering, _, _, info = env.step(single_to(env, 0, 1))
    assert not info["feasible"]
    assert entering < -CONFIG.overflow_penalty
    assert np.array_equal(info["best_placement"].devices, [0, 1])
    _, leaving, _, _, info = env.step(single_to(env, 0, 0))
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
    env.step(0)
    env.step(everything_to(env, 0))
    assert clock.calls == 1
    env.reset()
    env.step(everything_to(env, 1))
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
    for _ in range(CONFIG.horizon):
        for key in ("devices", "device_mask"):
            np.testing.assert_allclose(a[key][:3], b[key][order], atol=1e-5)
        np.testing.assert_allclose(a["moves"][:, :3], b["moves"][:, order], atol=1e-5)
        np.testing.assert_allclose(a["placement"][:, :3], b["placement"][:, order], atol=1e-6)
        np.testing.assert_allclose(a["links"][:3, :3], b["links"][np.ix_(order, order)], atol=1e-5)
        for key in ("groups", "edges", "edge_features", "units", "step"):
            np.testing.assert_allclose(a[key], b[key], atol=1e-5)
        action = int(rng.choice(np.flatnonzero(one.action_masks())[1:]))
        unit, device = divmod(action - 1, CONFIG.max_devices)
        a = one.step(action)[0]
        b = two.step(1 + unit * CONFIG.max_devices + order[device])[0]


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
    assert len({int(mask.sum()) for mask in obs["group_mask"]} | {float(s[8]) for s in obs["step"]}) > 1
    again = make_vec_env(ScenarioSampler(4), 3, seed=0, config=CONFIG).reset()
    assert all(np.array_equal(obs[key], again[key]) for key in obs)
