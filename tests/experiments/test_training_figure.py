import json

from segue.agent.pretrained import DEFAULT
from segue.experiments import training_figure


def test_the_curves_of_policies_are_drawn(tmp_path):
    record = {
        "command": "segue train --preset release --seed 3",
        "timesteps": 2048,
        "choice_loss_by_chunk": [2.0, 1.5, 1.2],
        "mean_episode_reward_by_chunk": [0.3, 0.4],
        "greedy_gain_by_chunk": [0.2, 0.3, 0.35],
    }
    file, out = tmp_path / f"{DEFAULT}.json", tmp_path / "training.png"
    file.write_text(json.dumps(record))
    training_figure.main([str(file), str(file), "--out", str(out)])
    assert out.read_bytes().startswith(b"\x89PNG")
