import torch

from segue.agent.network import PlacementNetwork
from segue.env import EnvConfig, PlacementEnv, ScenarioSampler

WIDE = EnvConfig(max_groups=120, max_edges=300)


def network(seed=0):
    torch.manual_seed(seed)
    return PlacementNetwork().eval()


def observation(seed, config=WIDE):
    env = PlacementEnv(sampler=ScenarioSampler(5, 30), config=config)
    obs, _ = env.reset(seed=seed)
    return env, {key: torch.from_numpy(value)[None] for key, value in obs.items()}


def grid(logits, config):
    return logits[0, 1:].view(config.max_units, config.max_devices)


def test_relabelling_devices_permutes_the_scores():
    order = torch.tensor([3, 0, 4, 1, 2, 5, 6, 7])
    for seed in range(5):
        _, obs = observation(seed)
        logits, value = network()(obs)
        other = dict(obs)
        for key in ("devices", "device_mask"):
            other[key] = obs[key][:, order]
        other["moves"] = obs["moves"][:, :, order]
        other["placement"] = obs["placement"][:, :, order]
        other["links"] = obs["links"][:, order][:, :, order]
        permuted, same_value = network()(other)
        torch.testing.assert_close(grid(permuted, WIDE), grid(logits, WIDE)[:, order], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(permuted[:, 0], logits[:, 0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(same_value, value, atol=1e-5, rtol=1e-4)


def test_padding_changes_nothing():
    wider = EnvConfig(max_groups=150, max_devices=11, max_edges=400)
    for seed in range(3):
        env, obs = observation(seed)
        _, wide = observation(seed, wider)
        units, devices = len(env.state.member), env.state.problem.num_devices
        one, other = grid(network()(obs)[0], WIDE), grid(network()(wide)[0], wider)
        torch.testing.assert_close(one[:units, :devices], other[:units, :devices], atol=1e-5, rtol=1e-4)


def test_scoring_some_moves_agrees_with_scoring_all():
    _, obs = observation(1)
    net = network()
    units, devices = torch.tensor([0, 3, 1, 3]), torch.tensor([1, 0, 0, 1])
    every = net.score(net.encode(obs), obs["units"], obs["moves"])
    some = net.score_some(net.encode(obs), obs["units"][:, units], devices[None], obs["moves"][:, units, devices])
    torch.testing.assert_close(some.logits, every.logits[:, units, devices], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(some.change, every.change[:, units, devices], atol=1e-5, rtol=1e-4)


def test_weights_take_less_than_a_megabyte():
    assert sum(p.numel() * p.element_size() for p in network().parameters()) < 2**20


def test_every_weight_is_trained():
    _, obs = observation(2)
    net = PlacementNetwork()
    scores = net.score(net.encode(obs), obs["units"], obs["moves"])
    sum(part.square().sum() for part in scores).backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not bool(torch.isfinite(p.grad).all())]
    assert silent == []


def test_without_history_nothing_measured_is_seen():
    _, obs = observation(3)
    other = {key: value.clone() for key, value in obs.items()}
    other["step"][:, :3] += 1.0
    other["devices"][:, :, [3, 4, 5, 8]] *= 0.5
    seeing, blind = network(), PlacementNetwork(history=False).eval()
    assert not torch.equal(seeing(obs)[0], seeing(other)[0])
    assert torch.equal(blind(obs)[0], blind(other)[0])


def test_without_rounds_no_message_is_heard():
    _, obs = observation(3)
    deaf = PlacementNetwork(rounds=0).eval()
    other = dict(obs, edge_mask=torch.zeros_like(obs["edge_mask"]))
    assert torch.equal(deaf(obs)[0], deaf(other)[0])
    assert not torch.equal(network()(obs)[0], network()(other)[0])
