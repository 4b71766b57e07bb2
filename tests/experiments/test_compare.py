import numpy as np
import pytest

from segue.experiments.compare import compare, comparison_table
from segue.placement.clock import SimulatedClock
from segue.placement.costs import make_costs
from segue.placement.errors import SegueError
from segue.placement.graph import make_graph
from segue.placement.planners import Plan
from segue.placement.presets import preset


@pytest.fixture
def clock() -> SimulatedClock:
    graph = make_graph(
        "chain", [(i, i + 1) for i in range(19)], forward_flops=1e8, backward_flops=2e8, output_bytes=1e4
    )
    topology = preset("emulated-4")
    return SimulatedClock.for_batch(graph, topology, make_costs(graph, topology), 4, 4)


def test_rows_are_sorted_and_one_is_the_winner(clock):
    rows = compare(clock, ["manual", "annealing", "manual"], evaluations=100)
    values = [row["value"] for row in rows]
    assert values == sorted(values)
    assert [row["best"] for row in rows] == [True] + [False] * (len(rows) - 1)
    assert len(rows) == 4 + 5 + 1
    by_name = {row["planner"]: row for row in rows}
    assert by_name["single:dev0"]["transfers"] == 0
    assert by_name["equal-layers"]["transfers"] == 2 * 3 * 4
    assert min(row["ratio"] for row in rows if row["planner"] != "annealing") == 1.0
    assert by_name["annealing"]["evaluations"] == 100
    assert {row["clock"] for row in rows} == {"simulated"}


def test_plans_made_elsewhere_take_part(clock):
    devices = np.full(20, 2)
    given = Plan("policy", devices, clock.step_time(devices), 0.0, 7, 0.5)
    rows = compare(clock, ["single:dev0"], plans=[given])
    assert [row["planner"] for row in rows] == ["policy", "single:dev0"]
    assert rows[0]["ratio"] == pytest.approx(0.12 / 0.36, rel=0.01)  # and a little for starting an instruction
    assert rows[0]["evaluations"] == 7


def test_the_table_says_which_clock_and_marks_the_winner(clock):
    table = comparison_table(compare(clock, ["single"])).splitlines()
    assert table[0] == "Step times are simulated."
    assert table[3].startswith("single:dev2")
    assert table[3].endswith("<- fastest")
    assert sum("fastest" in line for line in table) == 1


def test_without_a_manual_configuration_there_is_no_ratio(clock):
    rows = compare(clock, ["heft"])
    assert rows[0]["ratio"] is None
    assert " - " in comparison_table(rows)


def test_what_does_not_fit_comes_last_and_says_so(clock):
    devices = np.full(20, 2)
    big = Plan("too-big", devices, 1e-9, 5.0, 1, 0.0)
    rows = compare(clock, ["heft"], plans=[big])
    assert rows[-1]["planner"] == "too-big"
    assert not rows[-1]["feasible"]
    assert "does not fit" in comparison_table(rows).splitlines()[-1]


def test_an_unknown_planner_stops_before_any_runs(clock):
    with pytest.raises(SegueError, match="planner 'magic'"):
        compare(clock, ["annealing", "magic"], evaluations=10**9)
