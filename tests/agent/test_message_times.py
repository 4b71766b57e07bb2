"""Links of real devices: a cable between two hosts (network namespaces) that drops to a tenth."""

import json
from pathlib import Path

import pytest
import torch

from segue.experiments import two_hosts
from segue.experiments.bench_slow_cable import train_over_cable
from tests.agent import cable_script

WHY_NOT = two_hosts.why_not()
SCRIPT = str(Path(__file__).with_name("cable_script.py"))


def plain_losses(steps: int) -> list[float]:
    """The same training in one process."""
    torch.set_num_threads(1)
    step, (inputs, target) = cable_script.example()
    model, losses = step.model, []
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(steps):
        micros = zip(inputs.chunk(cable_script.MICROBATCHES), target.chunk(cable_script.MICROBATCHES), strict=True)
        parts = [step.loss_fn(model(x), y) / cable_script.MICROBATCHES for x, y in micros]
        sum(parts).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(sum(part.item() for part in parts))
    return losses


@pytest.mark.quiet
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(bool(WHY_NOT), reason=f"no two hosts on this machine: {WHY_NOT}")
def test_a_real_cable_that_drops_to_a_tenth_is_noticed_and_learned_and_changes_no_loss(tmp_path: Path) -> None:
    train_over_cable(tmp_path, [SCRIPT, str(tmp_path)], 2 * cable_script.STEPS)
    found = json.loads((tmp_path / "found.json").read_text())
    before, after = (
        {name: ratio for name, ratio in drift.items() if name.startswith("a message")} for drift in found["drift"]
    )
    assert before == {}
    ((name, ratio),) = after.items()
    assert name.endswith("and back")
    assert 4.0 < ratio < 20.0
    probed, fast, slow = found["pace"]
    assert 0.5 < fast / probed < 2.0
    assert 3.0 < slow / probed < 20.0
    assert found["losses"] == pytest.approx(plain_losses(len(found["losses"])), rel=1e-9)
