import pytest

from segue.agent.pretrained import load_policy, same_weights
from segue.experiments.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]

TOPOLOGY = """
format: segue.topology/1
devices:
  - {name: slow, kind: emulated, memory_bytes: 1.0e9, speed: 0.25, overhead_s: 0.001}
  - {name: fast, kind: emulated, memory_bytes: 1.0e9, speed: 1.0, overhead_s: 0.001}
default_link: {latency_s: 1.0e-4, bandwidth_bytes_per_s: 4.0e+8}
"""


def test_a_policy_learns_on_from_measured_step_times(tmp_path):
    topology, out = tmp_path / "topology.yaml", tmp_path / "tuned.safetensors"
    topology.write_text(TOPOLOGY)
    options = ["--model", "mlp", "--timesteps", "32", "--topology", str(topology), "--out", str(out)]
    assert main(["train", "--clock", "measured", *options]) == 0
    assert not same_weights(load_policy(out), load_policy())
