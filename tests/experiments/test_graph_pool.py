import json

import pytest

from segue.experiments.graph_pool import HELD_OUT, TRAINING, read_profile
from segue.placement.costs import roofline
from segue.placement.errors import SegueError


def test_no_family_is_both_trained_on_and_held_out():
    trained = {spec for specs in TRAINING.values() for spec, _ in specs}
    held_out = {spec for specs in HELD_OUT.values() for spec, _ in specs}
    assert not trained & held_out
    assert not TRAINING.keys() & HELD_OUT.keys()


def node(name, forward):
    return {"id": name, "op": "Conv2d(3, 4)", "fw_ms": forward, "bw_ms": 2.0, "act_bytes": 8.0, "param_bytes": 4.0}


def test_a_profile_keeps_its_times_whatever_the_order_of_its_nodes(tmp_path):
    record = {"name": "two", "nodes": [node("b", 3.0), node("a", 1.0)], "edges": [["a", "b"]]}
    file = tmp_path / "two.json"
    file.write_text(json.dumps(record))
    graph = read_profile(file)
    assert graph.names == ("a", "b")
    assert graph.kinds == ("Conv2d", "Conv2d")
    assert roofline(graph).forward_s * 1e3 == pytest.approx([1.0, 3.0])
    assert roofline(graph).backward_s * 1e3 == pytest.approx([2.0, 2.0])


def test_a_profile_with_a_cycle_or_without_a_field_is_refused(tmp_path):
    file = tmp_path / "bad.json"
    file.write_text(
        json.dumps({"name": "bad", "nodes": [node("a", 1.0), node("b", 1.0)], "edges": [["a", "b"], ["b", "a"]]})
    )
    with pytest.raises(SegueError, match="cycle"):
        read_profile(file)
    file.write_text(json.dumps({"name": "bad", "nodes": [{"id": "a"}], "edges": []}))
    with pytest.raises(SegueError, match="not a GPU profile"):
        read_profile(file)
