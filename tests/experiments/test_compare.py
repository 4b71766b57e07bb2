import numpy as np
import pytest

from segue.experiments.compare import compare
from segue.experiments.compare_table import comparison_table, recommendation
from segue.placement.clock import SimulatedClock
from segue.placement.costs import make_costs
from segue.placement.errors import SegueError
from segue.placement.graph import make_graph
from segue.placement.objective_clock import make_clock
from segue.placement.planners import Plan
from segue.placement.presets import MIB, preset
from segue.placement.topology import Device, Topology, uniform_links


def make(topology=None, objective="step-time", state_bytes=0.0, **columns) -> SimulatedClock:
    costs = {"forward_flops": 1e8, "backward_flops": 2e8, "output_bytes": 1e4, **columns}
    graph = make_graph("chain", [(i, i + 1) for i in range(19)], parameter_bytes=state_bytes, **costs)
    topology = topology or preset("emulated-4")
    return make_clock(graph, topology, make_costs(graph, topology), [1] * 4, objective)


def devices(count, memory_bytes=2.0**30, latency_s=1e-4, bandwidth=1e9) -> Topology:
    parts = tuple(Device(f"dev{i}", "emulated", memory_bytes) for i in range(count))
    return Topology(f"equal-{count}", parts, uniform_links([d.name for d in parts], latency_s, bandwidth))


@pytest.fixture(scope="module")
def clock() -> SimulatedClock:
    return make()


def test_rows_are_sorted_and_one_is_the_winner(clock):
    rows = compare(clock, ["manual", "annealing", "manual"], evaluations=100).rows()
    values = [row["value"] for row in rows]
    assert values == sorted(values)
    assert [row["best"] for row in rows] == [True] + [False] * (len(rows) - 1)
    by_name = {row["planner"]: row for row in rows}
    assert by_name["single:dev0"]["transfers"] == 0
    assert by_name["equal-layers"]["transfers"] == 2 * 3 * 4
    assert min(row["ratio"] for row in rows if row["kind"] == "manual") == 1.0
    assert by_name["annealing"]["evaluations"] == 100
    assert by_name["annealing"]["kind"] == "planner"
    assert {row["clock"] for row in rows} == {"simulated"}


def test_plans_made_elsewhere_take_part(clock):
    devices = np.full(20, 2)
    given = Plan("policy", devices, clock.step_time(devices), 0.0, 7, 0.5)
    rows = compare(clock, ["single:dev0"], plans=[given]).rows()
    assert [row["planner"] for row in rows] == ["policy", "single:dev0"]
    assert rows[0]["ratio"] == pytest.approx(0.12 / 0.36, rel=0.01)  # and a little for starting an instruction
    assert rows[0]["evaluations"] == 7


def test_the_table_says_which_clock_and_marks_the_winner(clock):
    table = comparison_table(compare(clock, ["single"])).splitlines()
    assert table[0] == "Step times are simulated."
    assert table[3].startswith("single:dev2")
    assert table[3].endswith("<- fastest")
    assert sum("fastest" in line for line in table) == 1


def test_the_agent_is_a_contender_like_others(clock):
    comparison = compare(clock, ["agent", "single", "equal-layers"], evaluations=40)
    agent = next(contender for contender in comparison.contenders if contender.planner == "agent")
    assert agent.kind == "agent"
    assert agent.feasible
    assert agent.value_s <= comparison.best_manual.value_s


def test_without_a_manual_configuration_there_is_no_ratio(clock):
    comparison = compare(clock, ["heft"])
    assert comparison.rows()[0]["ratio"] is None
    assert " - " in comparison_table(comparison)


def test_what_does_not_fit_comes_last_and_says_what_overflows_where():
    clock = make(devices(2, memory_bytes=40 * MIB), state_bytes=1e6)
    comparison = compare(clock, ["single:dev0", "equal-layers"])
    assert [contender.planner for contender in comparison.contenders] == ["equal-layers", "single:dev0"]
    last = comparison.rows()[-1]
    assert not last["feasible"]
    assert last["reasons"] == ["dev0: 78.2 of 40.0 MiB"]
    assert "dev0: 78.2 of 40.0 MiB" in comparison_table(comparison).splitlines()[-1]


def test_a_model_that_fits_nowhere_is_said_to_and_how_close_it_came():
    comparison = compare(make(devices(2, memory_bytes=MIB), state_bytes=1e6), ["manual", "agent"], evaluations=40)
    assert not any(row["feasible"] for row in comparison.rows())
    assert comparison.rows()[0]["best"]
    assert "<- overflows least" in comparison_table(comparison)
    assert recommendation(comparison).startswith("This fits nowhere: the closest is ")
    assert "MiB" in recommendation(comparison)


def test_one_device_is_recommended_where_links_are_slow():
    comparison = compare(make(devices(2, bandwidth=1e4)), ["manual"])
    assert recommendation(comparison).startswith("Recommendation: single:dev0 would be faster than every split: ")
    assert comparison.winner.planner == "single:dev0"


def test_data_parallel_is_recommended_where_it_is_faster_and_says_by_how_much():
    clock = make(devices(2, latency_s=0.0, bandwidth=1e12))
    comparison = compare(clock, ["single", "equal-layers", "data-parallel"])
    assert comparison.winner.kind == "data-parallel"
    assert comparison.best_placement.planner == "equal-layers"
    best, split = (f"{1e3 * c.value_s:.4g} ms" for c in (comparison.winner, comparison.best_placement))
    line = recommendation(comparison)
    assert "data parallel" in line
    assert f"would be faster than every split: {best} against {split} (equal-layers)" in line


def test_on_one_device_there_is_nothing_to_split():
    comparison = compare(make(devices(1)), ["all"], evaluations=30)
    values = [row["value"] for row in comparison.rows() if row["feasible"]]
    assert values == pytest.approx([values[0]] * len(values))
    assert "there is no split" in recommendation(comparison)


@pytest.mark.parametrize("objective", ["max-load", "latency"])
def test_other_objectives_are_compared_without_data_parallel(objective):
    comparison = compare(make(objective=objective), ["all"], evaluations=30, objective=objective)
    assert "data-parallel" not in {contender.kind for contender in comparison.contenders}
    assert comparison.winner.value_s < comparison.best_manual.value_s * (1 + 1e-9)
    refused = compare(make(objective=objective), ["data-parallel"], objective=objective).rows()
    assert [row["value"] for row in refused] == [None, None]
    assert "not available: " in comparison_table(compare(make(objective=objective), ["data-parallel", "heft"]))


def test_of_many_equal_devices_only_a_few_are_shown():
    comparison = compare(make(devices(64)), ["single", "equal-layers"])
    assert len(comparison.rows()) == 65
    table = comparison_table(comparison)
    assert table.count("single:dev") == 4
    assert "60 more" in table


def test_the_same_evaluations_and_seed_give_the_same_rows(clock):
    def rows():
        found = compare(clock, ["annealing", "agent", "random"], seed=3, evaluations=60).rows()
        return [{**row, "planning_s": 0} for row in found]

    assert rows() == rows()


def test_a_budget_limits_the_seconds_of_a_search(clock):
    comparison = compare(clock, ["annealing", "heft"], budget_s=0.5)
    annealing = next(contender for contender in comparison.contenders if contender.planner == "annealing")
    assert 0.2 < annealing.planning_s < 1.0
    assert annealing.evaluations > 100


def test_an_unknown_planner_stops_before_any_runs(clock):
    with pytest.raises(SegueError, match="planner 'magic'"):
        compare(clock, ["annealing", "magic"], evaluations=10**9)


@pytest.mark.parametrize("limits", [{"evaluations": 0}, {"budget_s": 0.0}, {"budget_s": float("nan")}])
def test_limits_out_of_range_are_refused(clock, limits):
    with pytest.raises(SegueError, match="must be > 0"):
        compare(clock, ["annealing"], **limits)
