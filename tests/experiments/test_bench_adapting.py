import numpy as np

from segue.experiments.bench_adapting import METHODS, changes, changes_table, methods_table
from segue.experiments.mismatch import Case, believed_clock, make_beliefs, true_clock
from segue.placement.placement import Placement


def test_a_device_a_link_and_a_device_altogether_change() -> None:
    believed = believed_clock(Case("branches", "emulated-4", batch_size=8, microbatches=2), 0)
    truth = true_clock(believed, np.random.default_rng(0))
    running = Placement(np.arange(believed.graph.num_ops) * 4 // believed.graph.num_ops, 2)
    slow, link, gone = changes(truth, make_beliefs(believed), running, np.random.default_rng(0))
    assert 2 <= (slow.truth.step(running).busy_s / truth.step(running).busy_s).max() <= 4
    assert sorted(link.truth.topology.latency_s.ravel())[-2:] > [5 * truth.topology.latency_s.max()] * 2
    assert link.truth.step_time(running.devices) > truth.step_time(running.devices)
    assert gone.truth.topology.num_devices == gone.beliefs.topology.num_devices == 3
    left = gone.running >= 0
    names = [device.name for device in gone.truth.topology.devices]
    before = [truth.topology.devices[device].name for device in running.devices[left]]
    assert [names[device] for device in gone.running[left]] == before
    assert not left.all()


def test_the_tables_show_what_was_reached_and_what_was_not() -> None:
    row = {"case": "a", "change": "b", "moved_bytes": 2.0**20, "at_first": 0.5, "regret": 0.01, "can_stay": True}
    rows = [{**row, "method": method, "steps": None if method == "annealing" else 2} for method in METHODS]
    assert "> 8" in changes_table(rows)
    assert "50%" in changes_table(rows)
    assert "0 of 1" in methods_table(rows)
    assert "1 of 1" in methods_table(rows)
