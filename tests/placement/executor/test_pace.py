import itertools

import numpy as np
import pytest

from segue.placement.executor import launch
from segue.placement.topology import Device, Topology, uniform_links
from tests.placement.executor import jobs, move_jobs
from tests.placement.executor.test_executor import LIMIT_S, emulated_devices

pytestmark = [pytest.mark.quiet, pytest.mark.timeout(200)]


def test_an_emulated_step_takes_the_time_that_the_simulator_predicts() -> None:
    result = launch(jobs.paced, emulated_devices(2), emulated_devices(2), timeout_s=LIMIT_S)[0]
    measured, predicted = np.array(result["measured"]), np.array(result["predicted"])
    # Late on a busy machine perhaps, but never early; and the slower the pace, the closer.
    assert (measured > 0.99 * predicted).all()
    assert predicted[1] > 4 * predicted[0]
    assert measured[1] > 1.5 * measured[0]
    assert 0.0 <= result["hidden"] <= 1.0
    lanes = {span.lane for span in result["spans"]}
    assert lanes == {"dev0", "dev1"}
    for lane in lanes:
        bars = sorted(span[2:] for span in result["spans"] if span.lane == lane)
        assert all(a[1] <= b[0] + 1e-9 for a, b in itertools.pairwise(bars))


def test_an_emulated_step_that_clips_waits_as_the_simulator_predicts() -> None:
    names = ["dev0", "dev1"]
    devices = tuple(Device(name, "emulated", 1e9, 0.02) for name in names)
    slow = Topology("slow", devices, uniform_links(names, 1.0, 1e9))
    for found in launch(jobs.clipped, slow, slow, timeout_s=LIMIT_S):
        wait = found["predicted"] - found["without"]
        assert wait == pytest.approx(1.0, rel=0.05)
        assert 0.99 * found["predicted"] < found["measured"] < found["predicted"] + wait / 2


def test_links_of_different_pairs_carry_their_bytes_at_the_same_time() -> None:
    devices = tuple(Device(f"dev{i}", "emulated", 1e9, 0.02) for i in range(4))
    slow = Topology("slow", devices, uniform_links([device.name for device in devices], 3.0, 1e9))
    for report in launch(move_jobs.swap_pairs, slow, slow, timeout_s=LIMIT_S):
        assert report.bytes > 0
        assert report.link_s == pytest.approx(3.0, rel=0.01)
        assert report.link_s <= report.pause_s < 2 * report.link_s
