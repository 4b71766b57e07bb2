"""Training over two hosts: network namespaces with a slow cable between them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from segue.experiments import two_hosts
from segue.experiments.two_hosts import ADDRESSES, BITS_PER_S, Hosts, torchrun
from segue.placement.topology import Topology
from tests.placement.executor import fault_jobs, jobs

WHY_NOT = two_hosts.why_not()
pytestmark = [
    pytest.mark.quiet,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(bool(WHY_NOT), reason=f"no two hosts on this machine: {WHY_NOT}"),
]
ROOT = Path(__file__).parents[3]
SCRIPT = str(Path(__file__).with_name("host_script.py"))
LIMIT_S = 200.0


@pytest.fixture
def hosts() -> object:
    with two_hosts.two_hosts() as pair:
        yield pair


def start(hosts: Hosts, folder: Path, commands: list[list[str]], environments: list[dict[str, str]]) -> list:
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return [
        hosts.start(host, command, {**path, **environment}, folder / f"log-{host}")
        for host, (command, environment) in enumerate(zip(commands, environments, strict=True))
    ]


def wait(processes: list[subprocess.Popen], folder: Path) -> list[int]:
    """Exit codes; a process that is still there after `LIMIT_S` did hang."""
    deadline = time.monotonic() + LIMIT_S
    try:
        return [process.wait(deadline - time.monotonic()) for process in processes]
    except subprocess.TimeoutExpired:
        logs = "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("log-*")))
        pytest.fail(f"hangs:\n{logs}")


def plain_losses(steps: int) -> list[float]:
    """The same training in one process."""
    torch.set_num_threads(1)
    return jobs.plain("branches")[0][:steps]


def test_training_over_two_hosts_equals_plain_pytorch_and_the_probe_sees_the_slow_cable(
    hosts: Hosts, tmp_path: Path
) -> None:
    commands = [[*torchrun(host, 29531), SCRIPT, str(tmp_path), str(jobs.STEPS), "100", "probe"] for host in (0, 1)]
    processes = start(hosts, tmp_path, commands, [{}, {}])
    assert wait(processes, tmp_path) == [0, 0], (tmp_path / "log-0").read_text()
    first, second = fault_jobs.losses(tmp_path)
    assert first == second
    assert first == pytest.approx(plain_losses(jobs.STEPS), rel=1e-6)
    assumed, measured = Topology.load(tmp_path / "topology.json"), Topology.load(tmp_path / "measured.json")
    assert len({device.host for device in assumed.devices}) == 2
    bandwidth = np.array([link.bandwidth_bytes_per_s for link in measured.links])
    assert len(bandwidth) == 2
    assert (bandwidth > BITS_PER_S / 8 / 1.5).all()
    assert (bandwidth < BITS_PER_S / 8 * 1.25).all()
    assert not (np.array([link.bandwidth_bytes_per_s for link in assumed.links]) < BITS_PER_S / 8 * 2).any()


def test_a_cut_cable_ends_the_workers_of_both_hosts(hosts: Hosts, tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, str(tmp_path), "100000", "20"]
    environments = [
        {
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "GROUP_RANK": str(rank),
            "MASTER_ADDR": ADDRESSES[0],
            "MASTER_PORT": "29532",
        }
        for rank in (0, 1)
    ]
    processes = start(hosts, tmp_path, [command, command], environments)
    deadline = time.monotonic() + LIMIT_S
    while len(fault_jobs.losses(tmp_path)) < 2 or min(map(len, fault_jobs.losses(tmp_path))) < jobs.STEPS:
        assert all(process.poll() is None for process in processes), (tmp_path / "log-0").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    hosts.cut()
    codes = wait(processes, tmp_path)
    assert all(code != 0 for code in codes)
    for losses in fault_jobs.losses(tmp_path):
        assert losses[: jobs.STEPS] == pytest.approx(plain_losses(jobs.STEPS), rel=1e-6)
