from pathlib import Path

import numpy as np
import pytest

from segue.experiments import measure
from segue.experiments.measure import Measured, MeasureJob, check_present, measure_placements
from segue.placement.errors import SegueError
from segue.placement.executor import WorkerFailed
from segue.placement.presets import preset
from segue.placement.topology import Device, Topology, uniform_links

JOB = MeasureJob("mlp", batch_size=8, microbatches=2, image_size=8, rounds=2, steps=2)
OPS = 9


@pytest.mark.slow
def test_placements_take_turns_and_what_does_not_fit_is_skipped():
    names = ("roomy", "tight")
    devices = (Device("roomy", "emulated", 1e9, 0.2), Device("tight", "emulated", 1e5, 0.1))
    topology = Topology("unequal", devices, uniform_links(names, 1e-4, 1e9))
    maps = [np.zeros(OPS, np.int64), np.ones(OPS, np.int64)]
    fits, overflows = measure_placements(JOB, topology, maps)
    assert len(fits.step_times_s) == 4
    assert fits.source == "emulated"
    assert fits.median_s == np.median(fits.step_times_s)
    assert fits.ratio == fits.predicted_s / fits.median_s
    assert overflows.step_times_s == ()
    assert overflows.reason == "does not fit tight"


def test_what_overflows_while_it_runs_is_skipped_and_the_others_go_on(monkeypatch):
    launched = []

    def launch(function, topology, job, chosen_topology, placements, profile, turn):
        launched.append(len(placements))
        if len(placements) == 3:
            Path(turn).write_text("1")
            raise WorkerFailed("worker 0 (dev0) failed:\n  a trace\nOutOfMemory: device dev0: 2 MiB")
        return [[Measured((float(placement[0]),), 1.0, "emulated") for placement in placements]]

    monkeypatch.setattr(measure, "launch", launch)
    found = measure_placements(JOB, preset("emulated-4"), [np.full(OPS, number) for number in (0, 1, 2)])
    assert launched == [3, 2]
    assert [entry.step_times_s for entry in found] == [(0.0,), (), (2.0,)]
    assert found[1].reason == "OutOfMemory: device dev0: 2 MiB"


def test_other_failures_are_not_hidden(monkeypatch):
    def launch(*arguments):
        raise WorkerFailed("worker 1 was killed")

    monkeypatch.setattr(measure, "launch", launch)
    with pytest.raises(WorkerFailed, match="killed"):
        measure_placements(JOB, preset("emulated-4"), [np.zeros(OPS, np.int64)])


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (Device("gpu", "cuda", 1e9, index=77), "is CUDA device 77, but this machine has"),
        (Device("far", "emulated", 1e9, host="elsewhere"), "is in host elsewhere"),
        (Device("part", "cpu", 1e9, cores=(9999,)), "core 9999 is not among those"),
    ],
)
def test_devices_that_are_not_here_are_named(device, reason):
    with pytest.raises(SegueError, match=reason):
        check_present(Topology("made-up", (device,)))
