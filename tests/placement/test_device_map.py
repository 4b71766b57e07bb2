import json
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.placement.device_map import follow_inputs, read_device_map, write_device_map
from segue.placement.errors import SegueError
from segue.placement.graph import make_graph
from segue.placement.placement import Placement, check_placement
from segue.placement.topology import Device, Topology, uniform_links

MODULES = ("embed", "layers.0.attn", "layers.0.attn", "layers.0", "layers.1.attn", "layers.1", "head", "")


def topology(names=("a", "b", "c")) -> Topology:
    return Topology("test", tuple(Device(n, "emulated", 1e12) for n in names), uniform_links(names, 1e-4, 1e8))


def chain(modules=MODULES, **given):
    return make_graph("chain", [(i, i + 1) for i in range(len(modules) - 1)], len(modules), modules=modules, **given)


def read(tmp_path, record, graph=None, devices=None):
    path = tmp_path / "map.json"
    path.write_text(json.dumps(record))
    return read_device_map(path, graph or chain(), devices or topology()).tolist()


def test_the_longest_prefix_wins(tmp_path):
    record = {"": 0, "layers": 1, "layers.1": 2, "layers.1.attn": 0}
    assert read(tmp_path, record) == [0, 1, 1, 1, 0, 2, 0, 0]


def test_a_prefix_ends_at_a_dot(tmp_path):
    assert read(tmp_path, {"": 0, "lay": 1, "h": 2, "layers.1": 1, "hea": 2})[-2] == 0


def test_devices_are_positions_names_or_cuda_numbers(tmp_path):
    assert read(tmp_path, {"": 0, "embed": "c", "head": "cuda:1"}) == [2, 0, 0, 0, 0, 0, 1, 0]
    assert read(tmp_path, {"": "cuda:1", "embed": "cpu"}, devices=topology(("cuda:1", "cpu")))[:2] == [1, 0]


def test_what_a_split_module_computes_itself_follows_its_inputs(tmp_path):
    record = {"embed": 2, "layers.0.attn": 1, "layers.1.attn": 0, "head": 2}
    assert read(tmp_path, record) == [2, 1, 1, 1, 0, 0, 2, 2]


def test_a_module_without_an_entry_is_named(tmp_path):
    with pytest.raises(SegueError, match=r"map.json: module 'head' has no entry \(op op6\)"):
        read(tmp_path, {"embed": 0, "layers": 1})


def test_users_of_a_tied_weight_follow_the_first(tmp_path):
    graph = chain(colocation=np.array([4, -1, -1, -1, -1, -1, 4, -1]))
    assert read(tmp_path, {"": 0, "embed": 2, "head": 1}, graph) == [2, 0, 0, 0, 0, 0, 2, 0]


@pytest.mark.parametrize("value", [3, -1, True, 1.0, None, "cuda:3", "cuda:-1", "cuda", "d", [0], {}, 10**400])
def test_a_value_that_is_no_device_is_refused_with_its_entry(tmp_path, value):
    with pytest.raises(SegueError, match=r"'embed': expected a device, got .*; known: 0..2, a, b, c"):
        read(tmp_path, {"": 0, "embed": value})


@pytest.mark.parametrize("value", ["cpu", "disk"])
def test_offloaded_modules_are_refused(tmp_path, value):
    with pytest.raises(SegueError, match=f"'head': offloaded to '{value}', which is no device of the topology"):
        read(tmp_path, {"": 0, "head": value})


@pytest.mark.parametrize("content", ["", "[]", "{", "7", "{}", '{"embed": ' + "9" * 5000 + "}"])
def test_a_file_that_is_no_map_is_refused(tmp_path, content):
    path = tmp_path / "map.json"
    path.write_text(content)
    with pytest.raises(SegueError, match=r"map\.json"):
        read_device_map(path, chain(), topology())


def test_follow_inputs_looks_back_then_ahead():
    graph = make_graph("graph", [(0, 2), (1, 2), (2, 3), (4, 5)], 7)
    assert follow_inputs(np.array([-1, 1, 2, -1, -1, 1, -1]), graph).tolist() == [2, 1, 2, 2, 1, 1, 0]


def test_a_written_map_is_compact(tmp_path):
    path = tmp_path / "map.json"
    modules = ("embed", *(f"layers.{i}.{part}" for i in range(6) for part in ("attn", "mlp")), "head", "")
    devices = np.array([0] + [0] * 6 + [1] * 6 + [1, 1])
    assert write_device_map(path, chain(modules), topology(), devices) == []
    record = json.loads(path.read_text())
    assert len(record) == 5
    assert record[""] == 1
    np.testing.assert_array_equal(read_device_map(path, chain(modules), topology()), devices)


def test_one_device_is_one_entry(tmp_path):
    write_device_map(tmp_path / "map.json", chain(), topology(), np.full(8, 2))
    assert json.loads((tmp_path / "map.json").read_text()) == {"": 2}


def test_modules_with_ops_on_several_devices_are_returned_and_get_the_majority(tmp_path):
    path = tmp_path / "map.json"
    graph = chain(("a", "a", "a", "b", "b"))
    assert write_device_map(path, graph, topology(), np.array([1, 0, 1, 2, 2])) == ["a"]
    assert read_device_map(path, graph, topology()).tolist() == [1, 1, 1, 2, 2]


part = st.sampled_from(["a", "b", "0", "1"])
module_paths = st.lists(part, max_size=4).map(".".join)


def smallest_map(own: dict[str, int]) -> int:
    """Fewest entries by trying every subset of paths with every device."""
    paths = sorted({""} | {".".join(m.split(".")[:i]) for m in own for i in range(1, m.count(".") + 2)})
    best = len(paths) + 1
    for labels in product([None, 0, 1], repeat=len(paths)):
        entries = {path: label for path, label in zip(paths, labels, strict=True) if label is not None}
        if len(entries) < best and all(covering(module, entries) == device for module, device in own.items()):
            best = len(entries)
    return best


def covering(module, entries):
    while module and module not in entries:
        module = module.rpartition(".")[0]
    return entries.get(module)


@settings(max_examples=25, deadline=None)
@given(modules=st.lists(module_paths, min_size=1, max_size=2, unique=True), data=st.data())
def test_no_map_has_fewer_entries(scratch, modules, data):
    devices = np.array(data.draw(st.lists(st.integers(0, 1), min_size=len(modules), max_size=len(modules))))
    path = scratch / "map.json"
    write_device_map(path, chain(tuple(modules)), topology(), devices)
    own = dict(zip(modules, devices.tolist(), strict=True))
    assert len(json.loads(path.read_text())) == smallest_map(own)


@settings(max_examples=60, deadline=None)
@given(modules=st.lists(module_paths, min_size=1, max_size=12), data=st.data())
def test_a_written_map_reads_back_but_for_the_split_modules(scratch, modules, data):
    count = len(modules)
    devices = np.array(data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)), np.int64)
    graph, path = chain(tuple(modules)), scratch / "map.json"
    split = write_device_map(path, graph, topology(), devices)
    names = np.array(modules)
    assert split == [module for module in dict.fromkeys(modules) if len(set(devices[names == module])) > 1]
    result = read_device_map(path, graph, topology())
    whole = np.array([module not in split for module in modules])
    np.testing.assert_array_equal(result[whole], devices[whole])


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_mutated_map_is_read_or_refused_in_one_line(data, mutations, refuses_or_reads, scratch):
    record = {"": "a", "embed": 0, "layers.0": 1, "layers.1": "cuda:2", "head": "b"}
    path = scratch / "mutated.json"
    path.write_text(json.dumps(data.draw(mutations(record))), encoding="utf-8")
    devices = refuses_or_reads(lambda p: read_device_map(p, chain(), topology()), path)
    if devices is not None:
        check_placement(Placement(devices), chain(), topology())
