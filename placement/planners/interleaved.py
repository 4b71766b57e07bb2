"""`interleaved`: every device computes several runs of the model, as interleaved pipelines have it."""

import numpy as np

from .manual import speed_split
from .plan import Evaluator

RUNS = (2, 3, 4)
"""Runs of each device that are tried."""


def interleaved(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """The best split into two to four runs a device, whose slowest run is as fast as can be.

    A device that computes early and late parts of the model waits less while the pipeline fills and drains, and sends more.
    The devices take turns in a loop (Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using
    Megatron-LM", SC 2021), or to and fro, so that neighbouring runs at the turns share a device and a U-shaped model has
    both ends of its long connections on one (Liu et al., "Hanayo", SC 2023).
    """
    del rng
    devices = np.arange(evaluator.clock.topology.num_devices)
    for runs in RUNS:
        for back in (devices, devices[::-1]):
            if not evaluator.left:
                return
            evaluator(speed_split(evaluator.clock, np.concatenate([devices, back] * 2)[: runs * len(devices)]))
