"""Figures of a run from what it wrote down, on records made by hand."""

from typing import Any

import numpy as np
import pytest

from segue.experiments.run import table
from segue.experiments.run_config import RunConfig, SlowDown
from segue.experiments.summary import Run, summarize
from segue.placement.costs import Profile
from segue.placement.graph import make_graph
from segue.placement.placement import Placement
from segue.placement.presets import preset

GRAPH = make_graph("chain", [(0, 1), (1, 2), (2, 3)], output_bytes=1e3, parameter_bytes=1e4)
PROFILE = Profile(np.full(4, 0.01), np.full(4, 0.02), np.zeros(4), "measured")
TOPOLOGY = preset("emulated-2")


def a_run(decisions: list[dict[str, Any]], times: list[float], slow: tuple[SlowDown, ...] = ()) -> Run:
    config = RunConfig(
        model="mlp",
        data="digits",
        topology=TOPOLOGY.to_record(),
        start="equal-layers",
        agent=True,
        steps=len(times),
        batch_size=8,
        microbatches=2,
        image_size=8,
        learning_rate=1e-3,
        seed=0,
        slow=slow,
        policy="",
        profile="",
        evaluations=1,
        checkpoint_every=10,
        run_dir="",
    )
    rows = [
        {"step": i, "loss": 2.0 - i / 100, "step_time_s": t, "pause_s": 0.0, "device_busy_s": [t / 2, t / 4]}
        for i, t in enumerate(times)
    ]
    start, end = Placement(np.array([0, 0, 1, 1]), 2), Placement(np.array([0, 0, 0, 1]), 2)
    return Run(config, GRAPH, TOPOLOGY, PROFILE, start, end, rows, decisions)


def move(step: int, ops: list[str], action: str = "move") -> dict[str, Any]:
    moves = {op: ["dev1", "dev0"] for op in ops}
    return {"step": step, "action": action, "moves": moves, "ops_moved": len(ops), "bytes_moved": 100.0}


def test_step_times_before_and_after_moves_are_told_apart() -> None:
    summary = summarize(a_run([move(10, ["op2"])], [9.0, *[2.0] * 9, 7.0, *[1.0] * 9]))
    assert summary["step_time_start_s"] == 2.0
    assert summary["step_time_after_first_s"] == 1.0
    assert summary["step_time_end_s"] == 1.0
    assert summary["ops_moved_share"] == 0.25
    assert summary["runtime_s"] == 9 + 18 + 7 + 9
    assert summary["busy_share_end"] == {"dev0": 0.5, "dev1": 0.25}
    assert summary["device_s"] == 2 * 43
    assert summary["idle_device_s"] == pytest.approx(43 / 2 + 43 * 3 / 4)
    assert "62% of 86 device seconds" in table(summary)


def test_a_run_is_cut_into_acts_where_devices_become_slower() -> None:
    times = [2.0] * 10 + [1.0] * 10 + [4.0] * 5 + [1.5] * 15
    decisions = [move(10, ["op2"]), move(25, ["op2", "op3"])]
    summary = summarize(a_run(decisions, times, (SlowDown("dev0", 20, 3.0),)))
    first, second = summary["acts"]
    assert first["before_s"][1] == 2.0
    assert first["after_s"][1] == 1.0
    assert second["before_s"][1] == 4.0
    assert second["after_s"][1] == 1.5
    assert summary["step_time_end_s"] == 1.5
    assert summary["ops_moved_share"] == 0.5


def test_the_runtime_without_the_agent_scales_the_start_by_the_simulator() -> None:
    run = a_run([], [2.0] * 20, (SlowDown("dev0", 10, 3.0),))
    ratio = run.clock(10).step_time(run.start.devices) / run.clock(0).step_time(run.start.devices)
    assert ratio > 1
    assert run.runtime_without_agent_s() == pytest.approx(10 * 2.0 + 10 * 2.0 * ratio)


def test_a_device_that_is_slow_from_the_start_changes_no_estimate() -> None:
    assert a_run([], [2.0] * 20, (SlowDown("dev0", 0, 3.0),)).runtime_without_agent_s() == pytest.approx(40.0)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_that_was_stopped_at_once_has_figures(steps: int) -> None:
    summary = summarize(a_run([], [2.0] * steps, (SlowDown("dev0", 10, 3.0),)))
    assert summary["step_time_start_s"] == summary["step_time_end_s"] == 2.0
    assert np.isfinite(summary["runtime_saved_estimate"])


def test_a_run_without_moves_has_a_table_too() -> None:
    text = table(summarize(a_run([], [2.0] * 5)))
    assert "emulated" in text
    assert "2000 ms" in text
    assert "ops moved" in text
