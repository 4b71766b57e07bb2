import re

import numpy as np
import pytest

from segue.experiments.figures import rolling_median
from segue.experiments.record import Event, RunRecord
from segue.experiments.report import write_report
from segue.experiments.tables import format_table
from segue.placement.clock import SimulatedClock
from segue.placement.costs import make_costs
from segue.placement.graph import make_graph
from segue.placement.placement import Placement
from segue.placement.presets import preset


def make_record(**changes) -> RunRecord:
    graph = make_graph("chain", [(i, i + 1) for i in range(19)], forward_flops=1e8, backward_flops=2e8)
    topology = preset("emulated-4")
    clock = SimulatedClock.for_batch(graph, topology, make_costs(graph, topology), 4, 4)
    before, after = Placement(np.arange(20) // 5, 4), Placement(np.arange(20) // 7, 4)
    reports = [clock.step(placement, timeline=True) for placement in (before, after)]
    values = {
        "title": "chain & <friends> on emulated-4",
        "device_kind": "emulated",
        "step_times_s": [0.4] * 10 + [0.2] * 10,
        "events": (Event(10, "moved 12 ops"), Event(11, "moved 1 op"), Event(15, "dev2 becomes 3x slower", "slow")),
        "graph": graph,
        "topology": topology,
        "before": before,
        "after": after,
        "busy_before": reports[0].busy_s / reports[0].step_time_s,
        "busy_after": reports[1].busy_s / reports[1].step_time_s,
        "summary": {"steps": 20, "runtime saved": "25 %"},
        "decisions": ({"step": 10, "why": "dev3 waits", "predicted_s": 0.2}, {"step": 15, "kept": False}),
        "predicted": reports[1].timeline,
        "measured": reports[1].timeline,
    }
    return RunRecord(**(values | changes))


def test_the_page_needs_no_other_file_and_says_what_kind_of_devices(tmp_path):
    write_report(tmp_path, make_record())
    page = (tmp_path / "report.html").read_text()
    assert "<title>chain &amp; &lt;friends&gt; on emulated-4 (emulated)</title>" in page
    assert "Device kind: emulated" in page
    assert page.count('src="data:image/png;base64,') == 2
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    for text in ("dev2 becomes 3x slower", "dev3 waits", "runtime saved", "25 %", "moved 12 ops"):
        assert text in page
    assert (tmp_path / "step_time.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_moves_or_timelines_has_a_page_too(tmp_path):
    write_report(tmp_path, make_record(step_times_s=[2.0], events=(), decisions=(), predicted=(), measured=()))
    page = (tmp_path / "report.html").read_text()
    assert "No move and no slow-down." in page
    assert "The placement was never reconsidered." in page
    assert page.count('src="data:image/png;base64,') == 1


def test_medians_do_not_mix_across_a_move():
    values = np.array([4.0] * 6 + [1.0] * 9)
    assert rolling_median(values, [6]).tolist() == values.tolist()
    assert rolling_median(np.array([1.0, 9.0, 1.0]), []).tolist() == [1.0, 1.0, 1.0]


def test_tables_align_numbers_to_the_right():
    rows = [["equal-layers", 1.23456, None, "7 %"], ["heft", 12, True, "12 %"]]
    assert format_table(rows, ["planner", "ms", "fits", "saved"]).splitlines() == [
        "planner          ms  fits  saved",
        "------------  -----  ----  -----",
        "equal-layers  1.235  -       7 %",
        "heft             12  yes    12 %",
    ]
    assert format_table([], ["a", "bc"]).splitlines() == ["a  bc", "-  --"]


def test_rows_must_be_as_long_as_the_headers():
    with pytest.raises(ValueError, match="zip"):
        format_table([[1, 2]], ["one"])
