import torch

from segue.agent.network import PlacementNetwork
from segue.env import EnvConfig, PlacementEnv, ScenarioSampler
from segue.env.observation import move_features


def network(seed=0):
    torch.manual_seed(seed)
    return PlacementNetwork().eval()


def observation(seed, config=None):
    env = PlacementEnv(sampler=ScenarioSampler(5, 30), config=config or EnvConfig(max_groups=120, max_edges=300))
    obs, _ = env.reset(seed=seed)
    return env, {key: torch.from_numpy(value)[None] for key, value in obs.items()}


def test_relabelling_devices_permutes_the_logits():
    order = torch.tensor([3, 0, 4, 1, 2, 5, 6, 7])
    for seed in range(5):
        _, obs = observation(seed)
        logits, value = network()(obs)
        other = dict(obs)
        for key in ("devices", "device_mask", "moves"):
            other[key] = obs[key][:, order]
        other["placement"] = obs["placement"][:, :, order]
        other["links"] = obs["links"][:, order][:, :, order]
        permuted, same_value = network()(other)
        torch.testing.assert_close(permuted[:, 1:], logits[:, 1:][:, order], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(permuted[:, 0], logits[:, 0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(same_value, value, atol=1e-5, rtol=1e-4)


def test_padding_changes_nothing():
    for seed in range(3):
        env, obs = observation(seed)
        _, wide = observation(seed, EnvConfig(max_groups=150, max_devices=11, max_edges=400))
        count = env.state.problem.num_devices + 1
        torch.testing.assert_close(network()(obs)[0][:, :count], network()(wide)[0][:, :count], atol=1e-5, rtol=1e-4)


def test_scoring_all_units_agrees_with_scoring_one():
    env, obs = observation(1)
    problem, net = env.state.problem, network()
    units = torch.zeros(1, problem.num_units, obs["groups"].shape[1])
    units[0, :, : problem.num_groups] = torch.from_numpy(problem.member)
    moves = torch.zeros(1, problem.num_units, *obs["moves"].shape[1:])
    moves[0, :, : problem.num_devices] = torch.from_numpy(move_features(env.state))
    logits, _ = net.score(net.encode(obs), units, moves)
    torch.testing.assert_close(logits[:, 0], net(obs)[0], atol=1e-5, rtol=1e-4)


def test_weights_take_less_than_a_megabyte():
    assert sum(p.numel() * p.element_size() for p in network().parameters()) < 2**20


def test_every_weight_is_trained():
    _, obs = observation(2)
    net = PlacementNetwork()
    logits, value = net(obs)
    (logits.square().sum() + value.square().sum()).backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not bool(torch.isfinite(p.grad).all())]
    assert silent == []
