"""Links of real devices: a cable between two hosts (network namespaces) that drops to a tenth."""

import json
import subprocess
import time
from pathlib import Path

import pytest
import torch

from segue.experiments import two_hosts
from segue.experiments.two_hosts import BITS_PER_S, torchrun
from tests.agent import cable_script

WHY_NOT = two_hosts.why_not()
SCRIPT = str(Path(__file__).with_name("cable_script.py"))
LIMIT_S = 200.0


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


def train_over_a_cable_that_drops(folder: Path) -> None:
    with two_hosts.two_hosts() as hosts:
        logs = [folder / f"log-{host}" for host in (0, 1)]
        commands = [[*torchrun(host, 29533), SCRIPT, str(folder)] for host in (0, 1)]
        root = {"PYTHONPATH": str(Path(__file__).parents[2])}
        processes: list[subprocess.Popen] = [hosts.start(h, commands[h], root, logs[h]) for h in (0, 1)]
        deadline = time.monotonic() + LIMIT_S
        while any(process.poll() is None for process in processes):
            said = "\n".join(log.read_text()[-2000:] for log in logs)
            assert time.monotonic() < deadline, f"hangs:\n{said}"
            assert not any(process.poll() for process in processes), said
            if (folder / "slow").exists() and not (folder / "slowed").exists():
                hosts.limit(BITS_PER_S / 10)
                (folder / "slowed").touch()
            time.sleep(0.05)
        assert [process.returncode for process in processes] == [0, 0]


@pytest.mark.quiet
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(bool(WHY_NOT), reason=f"no two hosts on this machine: {WHY_NOT}")
def test_a_real_cable_that_drops_to_a_tenth_is_noticed_and_learned_and_changes_no_loss(tmp_path: Path) -> None:
    train_over_a_cable_that_drops(tmp_path)
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
