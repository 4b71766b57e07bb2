"""Captured regions, casts and in-place ops on several workers: training equals plain PyTorch, whatever the placement."""

import numpy as np
import pytest
import torch
from torch import nn

from segue.placement.executor import Executor, launch
from segue.placement.placement import Placement, colocate
from segue.placement.topology import Device, Topology, uniform_links

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]
STEPS = 4


class Regions(nn.Module):
    """A table without gradient, a part in lower precision, parts written in place, a norm run for its statistics."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        x = self.first(x)
        self.norm(self.second(x))
        with torch.no_grad():
            gate = torch.sigmoid(self.second(x))
        shifted = torch.zeros_like(x)
        shifted[:, 1:] = x[:, :-1]
        shifted[:, 0] = 1
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.second(shifted)
        return self.third(torch.relu(y.float()) * gate + x)


def batch_of(step, count=8):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(count, 6, generator=generator), torch.randint(0, 5, (count,), generator=generator)


def make_model():
    torch.manual_seed(0)
    model = Regions().train()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def train(topology, seed):
    model, optimizer = make_model()
    executor = Executor(
        model,
        optimizer=optimizer,
        loss_fn=nn.CrossEntropyLoss(),
        example_batch=batch_of(0),
        topology=topology,
        microbatches=2,
    )
    rng = np.random.default_rng(seed)
    losses = []
    for step in range(STEPS):
        if seed is not None:
            devices = rng.integers(0, topology.num_devices, executor.graph.num_ops)
            executor.apply(Placement(colocate(devices, executor.graph), 2))
        losses.append(executor.step(batch_of(step)))
    return losses, executor.state_dict()


def compare(topology):
    return [train(topology, seed) for seed in (None, 1, 2)]


def plain():
    model, optimizer = make_model()
    losses = []
    for step in range(STEPS):
        inputs, target = batch_of(step)
        parts = [
            nn.functional.cross_entropy(model(x), y) / 2 for x, y in zip(inputs.split(4), target.split(4), strict=True)
        ]
        for part in parts:
            part.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(sum(part.item() for part in parts))
    return losses, model.state_dict()


def test_training_equals_plain_pytorch_under_every_placement():
    devices = tuple(Device(f"cpu{i}", "cpu", 1e9) for i in range(2))
    topology = Topology("cpus", devices, uniform_links([d.name for d in devices], 1e-4, 1e9))
    (losses, state), *moved = launch(compare, topology, topology, timeout_s=150.0)[0]
    torch.set_num_threads(1)
    expected, plain_state = plain()
    assert losses == pytest.approx(expected, rel=1e-5)
    for name, tensor in plain_state.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-5)
    for other_losses, other_state in moved:
        assert other_losses == losses
        assert all(torch.equal(state[name], other_state[name]) for name in state)
