import json

import pytest
import torch

from segue.agent.network import PlacementNetwork
from segue.agent.pretrained import load_policy, same_weights, save_policy
from segue.env import EnvConfig, PlacementEnv
from segue.placement.errors import SegueError


def observation():
    obs, _ = PlacementEnv(config=EnvConfig(max_devices=4)).reset(seed=0)
    return {key: torch.from_numpy(value)[None] for key, value in obs.items()}


def test_saved_and_loaded_policies_decide_alike(tmp_path):
    torch.manual_seed(1)
    network = PlacementNetwork(hidden=16, rounds=1)
    save_policy(network, tmp_path / "mine.safetensors", {"seed": 1})
    loaded = load_policy(tmp_path / "mine.safetensors")
    assert same_weights(network, loaded)
    for a, b in zip(network(observation()), loaded(observation()), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)
    assert json.loads((tmp_path / "mine.json").read_text())["seed"] == 1


def test_what_a_policy_does_not_see_is_kept_with_it(tmp_path):
    save_policy(PlacementNetwork(hidden=16, rounds=0, history=False), tmp_path / "mine.safetensors")
    assert load_policy(tmp_path / "mine.safetensors").arguments == {"hidden": 16, "rounds": 0, "history": False}


def test_the_shipped_policy_loads_and_prefers_something():
    logits, _ = load_policy()(observation())
    assert logits[0, observation()["action_mask"][0] > 0].std() > 0.1


def test_unusable_files_are_refused(tmp_path):
    with pytest.raises(SegueError, match="cannot be read"):
        load_policy(tmp_path / "missing.safetensors")
    file = tmp_path / "mine.safetensors"
    save_policy(PlacementNetwork(hidden=16), file)
    record = json.loads(file.with_suffix(".json").read_text())
    file.with_suffix(".json").write_text(json.dumps(record | {"hidden": 24}))
    with pytest.raises(SegueError, match="not a segue policy"):
        load_policy(file)
    file.with_suffix(".json").write_text(json.dumps(record | {"format": "other"}))
    with pytest.raises(SegueError, match="format must be"):
        load_policy(file)
    file.with_suffix(".json").write_text(json.dumps(record))
    file.write_bytes(b"\x10\x00")
    with pytest.raises(SegueError, match="not a segue policy"):
        load_policy(file)
