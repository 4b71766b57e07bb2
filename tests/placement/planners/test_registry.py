import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.placement.clock import SimulatedClock
from segue.placement.costs import make_costs
from segue.placement.device_map import write_device_map
from segue.placement.errors import SegueError
from segue.placement.graph import make_graph
from segue.placement.placement import Placement
from segue.placement.planners import PLANNERS, expand, plan, registry
from segue.placement.topology import Device, Topology, uniform_links

MODULES = ("embed", "layers.0", "layers.1", "head")


def topology() -> Topology:
    devices = tuple(Device(name, "emulated", 1e12) for name in ("a", "b"))
    return Topology("test", devices, uniform_links(["a", "b"], 1e-4, 1e8))


def graph(modules=MODULES):
    return make_graph("chain", [(0, 1), (1, 2), (2, 3)], modules=modules, forward_flops=1e8)


def clock() -> SimulatedClock:
    return SimulatedClock(graph(), topology(), make_costs(graph(), topology()))


def test_all_leaves_out_planners_whose_library_is_missing(monkeypatch):
    assert set(PLANNERS) <= set(expand(["all"], topology()))
    monkeypatch.setattr(registry, "find_spec", lambda library: None)
    left_out = set(PLANNERS) - set(expand(["all"], topology()))
    assert left_out == set(registry.LIBRARIES)
    assert expand(["metis"], topology()) == ["metis"]


def test_a_placement_file_is_priced(tmp_path):
    path = tmp_path / "placement.json"
    Placement(np.array([0, 1, 1, 0]), 3).save(path, graph(), topology())
    found = plan(f"file:{path}", clock())
    assert found.devices.tolist() == [0, 1, 1, 0]
    assert found.evaluations == 1


def test_a_device_map_file_is_priced(tmp_path):
    path = tmp_path / "map.json"
    write_device_map(path, graph(), topology(), np.array([1, 1, 0, 1]))
    assert plan(f"file:{path}", clock()).devices.tolist() == [1, 1, 0, 1]


def test_a_module_may_be_called_format(tmp_path):
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"": 0, "format": 1}))
    named = graph(("embed", "format", "format.0", "head"))
    priced = SimulatedClock(named, topology(), make_costs(named, topology()))
    assert plan(f"file:{path}", priced).devices.tolist() == [0, 1, 1, 0]


def test_a_missing_file_is_refused_before_any_planning(tmp_path):
    with pytest.raises(SegueError, match=r"nothing\.json: cannot be read"):
        expand(["manual", f"file:{tmp_path / 'nothing.json'}"], topology())


def test_a_placement_of_another_graph_is_refused(tmp_path):
    path = tmp_path / "placement.json"
    other = make_graph("other", [(0, 1)])
    Placement(np.array([0, 1])).save(path, other, topology())
    with pytest.raises(SegueError, match="made for graph"):
        plan(f"file:{path}", clock())


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_mutated_file_is_priced_or_refused_in_one_line(data, mutations, refuses_or_reads, scratch):
    record = Placement(np.array([0, 1, 1, 0]), 3).to_record(graph(), topology())
    path = scratch / "placement.json"
    path.write_text(json.dumps(data.draw(mutations(record))), encoding="utf-8")
    refuses_or_reads(lambda p: plan(f"file:{p}", clock()), path)
