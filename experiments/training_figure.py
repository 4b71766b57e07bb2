"""The picture of how policies were trained: `python -m segue.experiments.training_figure POLICY.json … --out training.png`.

Each policy's `.json` has the loss of imitation after every chunk, and for PPO the mean episode reward of every chunk and what
greedy episodes of always the same scenarios gain before PPO and after every chunk.
"""

import argparse
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .figures import DEVICE_COLOURS


def training_figure(records: Sequence[dict[str, Any]]) -> bytes:
    """PNG: loss of imitation, mean reward and greedy gain of PPO, a line a policy."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    loss, reward, gain = figure.subplots(1, 3)
    for record, colour in zip(records, DEVICE_COLOURS, strict=False):
        label = f"seed {record['command'].split('--seed ')[-1].split()[0]}"
        losses, rewards = record["choice_loss_by_chunk"], record["mean_episode_reward_by_chunk"]
        gains = record["greedy_gain_by_chunk"]
        steps = record["timesteps"] / max(1, len(rewards))
        loss.plot(np.arange(1, len(losses) + 1), losses, color=colour, label=label)
        reward.plot(steps * np.arange(1, len(rewards) + 1), rewards, color=colour, label=label)
        gain.plot(steps * np.arange(len(gains)), gains, color=colour, label=label)
    loss.set(title="imitation", xlabel="chunks of 128 scenarios", ylabel="choice loss, new scenarios")
    reward.set(title="PPO", xlabel="environment steps", ylabel="mean episode reward, new scenarios")
    gain.set(title="PPO", xlabel="environment steps", ylabel="greedy gain, the same scenarios")
    loss.legend(frameon=False)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(prog="python -m segue.experiments.training_figure", description=__doc__)
    parser.add_argument("policies", nargs="+", help=".json files of trained policies")
    parser.add_argument("--out", required=True, help="picture to write")
    options = parser.parse_args(arguments)
    records = [json.loads(Path(path).read_text()) for path in options.policies]
    Path(options.out).write_bytes(training_figure(records))


if __name__ == "__main__":
    main()
