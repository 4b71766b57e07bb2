import numpy as np
import pytest

from segue.experiments.bench_few_steps import cases_table, methods_table
from segue.experiments.emulated_stand import bench_emulated_case
from segue.experiments.few_steps_figure import few_steps_figure
from segue.experiments.mismatch import (
    NOISE,
    Case,
    Stand,
    believed_clock,
    make_beliefs,
    random_branches,
    true_clock,
    wrong_by,
)
from segue.experiments.probing import METHODS
from segue.placement.clock import SimulatedClock
from segue.placement.placement import Placement

CASE = Case("branches", "emulated-2", batch_size=8, microbatches=2)


def problem() -> tuple[SimulatedClock, SimulatedClock]:
    believed = believed_clock(CASE, 0)
    return believed, true_clock(believed, np.random.default_rng(0))


def test_factors_are_within_half_and_spread_out() -> None:
    factors = wrong_by(np.random.default_rng(0), (1000,))
    assert 0.5 <= factors.min() < 0.55
    assert 1.4 < factors.max() <= 1.5


def test_the_truth_differs_in_costs_and_in_nothing_else() -> None:
    believed, truth = problem()
    ratio = truth.costs.on_devices(truth.costs.forward_s) / believed.costs.on_devices(believed.costs.forward_s)
    assert 0.25 <= ratio.min() < 0.5
    assert 1.0 < ratio.max() <= 2.25
    assert ratio.std(axis=0) == pytest.approx(ratio[:, 0].std() * ratio[0] / ratio[0, 0])
    assert np.array_equal(truth.costs.state_bytes, believed.costs.state_bytes)
    assert truth.graph is believed.graph


def test_a_stand_answers_with_noise_keeps_the_believed_costs_and_writes_down_the_truth() -> None:
    believed, truth = problem()
    stand, devices = Stand(believed, truth, 0), np.zeros(believed.graph.num_ops, np.int64)
    measured = [stand.evaluate(devices)[0] for _ in range(100)]
    true_s = truth.step_time(devices)
    assert np.std(np.log(measured)) == pytest.approx(NOISE, rel=0.3)
    assert np.median(measured) == pytest.approx(true_s, rel=0.01)
    assert stand.best_so_far(101).tolist() == [true_s] * 101
    assert stand.costs is believed.costs
    report, exact = stand.step(Placement(devices, 2)), truth.step(Placement(devices, 2), timeline=True)
    assert len(report.timeline) == len(exact.timeline)
    assert report.busy_s != pytest.approx(exact.busy_s, rel=1e-6)
    assert report.busy_s == pytest.approx(exact.busy_s, rel=0.2)


def test_beliefs_start_from_the_believed_costs() -> None:
    believed, _ = problem()
    devices = np.arange(believed.graph.num_ops) % 2
    assert make_beliefs(believed).clock.step_time(devices) == pytest.approx(believed.step_time(devices))


def test_random_graphs_come_again_with_the_seed() -> None:
    one, other = random_branches(np.random.default_rng(3)), random_branches(np.random.default_rng(3))
    assert one.hash == other.hash
    assert random_branches(np.random.default_rng(4)).hash != one.hash


@pytest.mark.parametrize("name", [name for name in METHODS if not name.startswith(("segue", "long"))])
def test_no_method_measures_more_than_it_may(name: str) -> None:
    pytest.importorskip("optuna")
    believed, truth = problem()
    stand = Stand(believed, truth, 0)
    METHODS[name](stand, 7, 0)
    assert len(stand.measured) == (1 if name.startswith("dynamic") else 7) or name == "dynamic program on the beliefs"
    assert stand.best_so_far(7)[-1] <= stand.measured[0][2] * (1 + 6 * NOISE)


@pytest.mark.slow
def test_placements_are_measured_as_steps_of_training_on_emulated_devices() -> None:
    case = Case("mlp", "emulated-2", batch_size=8, image_size=8, microbatches=2)
    methods = ["segue", "annealing", "dynamic program on the beliefs"]
    rows = bench_emulated_case(case, seed=0, evaluations=4, reference=50, methods=methods)
    assert [row["method"] for row in rows] == methods
    assert [row["measured"] for row in rows][:2] == [4, 4]
    for row in rows:
        assert len(row["regret"]) == 4
        assert min(row["regret"]) >= 0.0
    assert min(row["regret"][-1] for row in rows) < 0.5


def test_the_tables_and_the_picture_show_every_method() -> None:
    rows = [
        {
            "case": case,
            "method": method,
            "best_known_s": 1.0,
            "regret": [0.5] * 10 + [0.04] * 10,
            "measured": 20,
            "seconds": 1,
        }
        for case in ("a", "b")
        for method in METHODS
    ]
    table = methods_table(rows, "simulated")
    assert "2 of 2" in table
    assert "50.0%" in table
    assert all(method in table for method in METHODS)
    assert cases_table(rows, "simulated").count("4.0%") == 2 * len(METHODS)
    assert few_steps_figure(rows, 0.05, "simulated").startswith(b"\x89PNG")
