import copy
import json

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.placement.discover import discover
from segue.placement.errors import SegueError
from segue.placement.gpus import GPUS
from segue.placement.presets import preset, presets
from segue.placement.topology import Device, Link, Topology, check_topology, uniform_links

RECORD = {
    "format": "segue.topology/1",
    "name": "two",
    "devices": [
        {"name": "gpu0", "kind": "cuda", "memory_bytes": 16e9, "index": 1, "model": "A10"},
        {"name": "cpu0", "kind": "cpu", "memory_bytes": 8e9, "speed": 0.25, "overhead_s": 1e-5, "cores": [0, 1]},
    ],
    "links": [
        {
            "source": "gpu0",
            "target": "cpu0",
            "latency_s": 1e-4,
            "bandwidth_bytes_per_s": 1e9,
            "channels": ["gpu0.up", "bridge"],
        }
    ],
}


def write(path, record):
    path.write_text(yaml.safe_dump(record) if path.suffix == ".yaml" else json.dumps(record))
    return path


@pytest.mark.parametrize("suffix", ["json", "yaml", "yml"])
@pytest.mark.parametrize("name", presets())
def test_a_saved_topology_is_read_back_whole(tmp_path, name, suffix):
    topology = preset(name)
    check_topology(topology)
    topology.save(tmp_path / f"t.{suffix}")
    again = Topology.load(tmp_path / f"t.{suffix}")
    assert again == topology
    assert again.hash == topology.hash


def test_a_link_goes_both_ways_unless_the_other_is_listed():
    topology = Topology.from_record(RECORD)
    assert topology.links[1] == Link("cpu0", "gpu0", 1e-4, 1e9, ("gpu0.up", "bridge"))
    both = copy.deepcopy(RECORD)
    both["links"].append({"source": "cpu0", "target": "gpu0", "latency_s": 0, "bandwidth_bytes_per_s": 5})
    assert Topology.from_record(both).links[1] == Link("cpu0", "gpu0", 0.0, 5.0)


def test_the_default_link_fills_what_is_not_listed():
    record = copy.deepcopy(RECORD)
    record["devices"].append({"name": "cpu1", "kind": "cpu", "memory_bytes": 1})
    record["default_link"] = {"latency_s": 1, "bandwidth_bytes_per_s": 2}
    topology = Topology.from_record(record)
    assert len(topology.links) == 6
    assert topology.latency_s.tolist() == [[0, 1e-4, 1], [1e-4, 0, 1], [1, 1, 0]]
    assert topology.seconds_per_byte.tolist() == [[0, 1e-9, 0.5], [1e-9, 0, 0.5], [0.5, 0.5, 0]]


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text("format: segue.topology/1\ndevices:\n- {name: 0, kind: cpu, memory_bytes: 16e9}\n")
    topology = Topology.load(path)
    assert topology.name == "t"
    assert topology.devices == (Device("0", "cpu", 16e9),)


def test_the_hash_identifies_everything_but_the_name():
    topology = Topology.from_record(RECORD)
    assert topology.hash == Topology("other", topology.devices, topology.links).hash
    assert topology.hash != topology.with_speed(np.array([1.0, 0.5])).hash
    assert topology.with_speed(np.array([1.0, 0.5])).speed.tolist() == [1.0, 0.5]


def device(field, value):
    return lambda r: r["devices"][0].__setitem__(field, value)


def link(field, value):
    return lambda r: r["links"][0].__setitem__(field, value)


LINK = "link gpu0->cpu0: "
MALFORMED = {
    "wrong format": (lambda r: r.__setitem__("format", "segue.graph/1"), "format: expected 'segue.topology/1'"),
    "no devices": (lambda r: r.pop("devices"), "devices: missing"),
    "empty devices": (lambda r: r.__setitem__("devices", []), "devices: expected a list of at least one device"),
    "devices not a list": (lambda r: r.__setitem__("devices", 3), "devices: expected a list of at least one device"),
    "device not a mapping": (
        lambda r: r["devices"].append("gpu1"),
        "devices[2]: expected a mapping with name, kind, memory_bytes",
    ),
    "name twice": (device("name", "cpu0"), "device cpu0: name appears twice"),
    "name of no text": (device("name", None), "device None: name must be text, got NoneType"),
    "unknown kind": (device("kind", "tpu"), "device gpu0: kind must be one of cuda, cpu, emulated, got 'tpu'"),
    "no memory": (lambda r: r["devices"][0].pop("memory_bytes"), "device gpu0: memory_bytes: missing"),
    "memory of 0": (device("memory_bytes", 0), "device gpu0: memory_bytes must be > 0, got 0"),
    "memory as text": (device("memory_bytes", "much"), "device gpu0: memory_bytes must be a number"),
    "memory beyond floats": (device("memory_bytes", 10**400), "device gpu0: memory_bytes must be finite, got inf"),
    "negative speed": (device("speed", -1), "device gpu0: speed must be > 0, got -1"),
    "NaN speed": (device("speed", float("nan")), "device gpu0: speed must be finite, got nan"),
    "tiny speed": (device("speed", 1e-320), "device gpu0: speed is too close to 0"),
    "true speed": (device("speed", True), "device gpu0: speed must be a number"),
    "negative overhead": (device("overhead_s", -1), "device gpu0: overhead_s must be >= 0, got -1"),
    "index as text": (device("index", "0"), "device gpu0: index must be a CUDA device number, got '0'"),
    "negative core": (device("cores", [-1]), "device gpu0: cores must be a list of core numbers, got [-1]"),
    "unknown model": (device("model", "A1000"), "device gpu0: model must be one of GTX 1080 Ti, RTX 2080 Ti"),
    "model of none": (device("model", None), "device gpu0: model must be text, got NoneType"),
    "channels as text": (link("channels", "nic"), LINK + "channels must be a list of names of buses or network cards"),
    "a channel of no name": (link("channels", ["a", ""]), LINK + "channels must be a list of names of buses"),
    "unknown field": (device("sped", 1), "device gpu0: sped: unknown field; known: name, kind, memory_bytes, speed"),
    "links not a list": (lambda r: r.__setitem__("links", {}), "links: expected a list"),
    "link not a mapping": (lambda r: r["links"].append(3), "links[1]: expected a mapping with source, target"),
    "unknown device": (link("target", "gpu7"), "link gpu0->gpu7: unknown device 'gpu7'; known: gpu0, cpu0"),
    "link to itself": (link("target", "gpu0"), "link gpu0->gpu0: a device needs no link to itself"),
    "link twice": (lambda r: r["links"].append(r["links"][0]), LINK + "appears twice"),
    "negative bandwidth": (link("bandwidth_bytes_per_s", -3), LINK + "bandwidth must be > 0 bytes/s, got -3"),
    "negative bandwidth as text": (link("bandwidth_bytes_per_s", "-3e0"), LINK + "bandwidth must be > 0 bytes/s"),
    "NaN bandwidth": (link("bandwidth_bytes_per_s", float("nan")), LINK + "bandwidth_bytes_per_s must be finite"),
    "huge negative": (link("bandwidth_bytes_per_s", -(10**400)), LINK + "bandwidth_bytes_per_s must be finite"),
    "bandwidth of none": (link("bandwidth_bytes_per_s", None), LINK + "bandwidth_bytes_per_s must be a number"),
    "negative latency": (link("latency_s", -1), LINK + "latency_s must be >= 0, got -1"),
    "no latency": (lambda r: r["links"][0].pop("latency_s"), LINK + "latency_s: missing"),
    "missing link": (lambda r: r.pop("links"), "link gpu0->cpu0: missing; list it or give a default_link"),
    "default not a mapping": (lambda r: r.__setitem__("default_link", 3), "default_link: expected a mapping with"),
    "default of text": (
        lambda r: r.__setitem__("default_link", {"latency_s": "no", "bandwidth_bytes_per_s": 1}),
        "default_link: latency_s must be a number",
    ),
    "a name on two lines": (device("na\nme", 1), "device gpu0: na me: unknown field"),
}


@pytest.mark.parametrize("suffix", ["json", "yaml"])
@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_topology_is_refused_with_the_file_the_field_and_the_reason(tmp_path, case, suffix):
    mutate, message = MALFORMED[case]
    record = copy.deepcopy(RECORD)
    mutate(record)
    path = write(tmp_path / f"t.{suffix}", record)
    with pytest.raises(SegueError) as error:
        Topology.load(path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


def test_devices_of_one_name_are_refused():
    twice = (Device("a", "cpu", 1), Device("a", "cpu", 1))
    with pytest.raises(SegueError, match="topology t: device a: name appears twice"):
        check_topology(Topology("t", twice))


@pytest.mark.parametrize(
    "content", ["a: [", "a: 0x_", "a: !!bool maybe", "a: !!timestamp x", "[" * 5000, "\x00", "- 1"]
)
def test_a_file_that_is_not_a_yaml_mapping_is_refused(tmp_path, content, refuses_or_reads):
    path = tmp_path / "t.yaml"
    path.write_text(content)
    assert refuses_or_reads(Topology.load, path) is None


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_mutated_topology_file_is_read_or_refused_in_one_line(mutations, refuses_or_reads, scratch, data):
    record = data.draw(mutations(RECORD))
    path = write(scratch / "mutated.json", record)
    if data.draw(st.booleans()):
        path = write(scratch / "mutated.yaml", record)
    topology = refuses_or_reads(Topology.load, path)
    if topology is not None:
        check_topology(topology)
        topology.save(scratch / "again.yaml")
        assert Topology.load(scratch / "again.yaml") == topology
        assert np.isfinite(topology.seconds_per_byte).all()


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_topology_file_with_broken_bytes_is_read_or_refused_in_one_line(refuses_or_reads, scratch, data):
    content = bytearray(yaml.safe_dump(RECORD).encode())
    start = data.draw(st.integers(0, len(content) - 1))
    broken = st.one_of(st.binary(max_size=4), st.text("!&*|>-?:,[]{}#%@`'\"\n \t0x_", max_size=6).map(str.encode))
    content[start : start + data.draw(st.integers(0, 5))] = data.draw(broken)
    path = scratch / "broken.yaml"
    path.write_bytes(content)
    refuses_or_reads(Topology.load, path)


def test_a_preset_that_does_not_exist_names_those_that_do():
    with pytest.raises(SegueError, match="topology 'dgx': no such preset; known: emulated-1, "):
        preset("dgx")


def test_this_machine_is_a_valid_topology():
    topology = discover()
    check_topology(topology)
    assert topology.devices[0].speed == 1.0
    assert len(topology.links) == topology.num_devices * (topology.num_devices - 1)


NAMES = st.text(min_size=1, max_size=8).filter(lambda name: name.isprintable() and name.strip())


@st.composite
def draw_topology(draw):
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    positive = st.floats(1e-6, 1e15)
    devices = [
        Device(
            name=name,
            kind=draw(st.sampled_from(["cuda", "cpu", "emulated"])),
            memory_bytes=draw(positive),
            speed=draw(positive),
            host=draw(st.sampled_from(["localhost", "host1", "7"])),
            index=draw(st.integers(0, 9)),
            cores=tuple(draw(st.lists(st.integers(0, 63), max_size=3))),
            model=draw(st.sampled_from(["", *GPUS])),
        )
        for name in names
    ]
    channels = st.lists(st.sampled_from(["host0.nic.up", "host0.switch0.down", "0", "a b"]), max_size=3, unique=True)
    latency = st.floats(0, 1, allow_subnormal=False)
    pairs = [(a, b) for a in names for b in names if a != b]
    links = [Link(a, b, draw(latency), draw(positive), tuple(draw(channels))) for a, b in pairs]
    return Topology(draw(NAMES), tuple(devices), tuple(links))


@settings(max_examples=100, deadline=None)
@given(topology=draw_topology())
def test_any_topology_with_models_and_channels_survives_its_file(scratch, topology):
    for suffix in ("yaml", "json"):
        topology.save(scratch / f"drawn.{suffix}")
        assert Topology.load(scratch / f"drawn.{suffix}") == topology


def test_links_that_name_a_channel_get_its_number():
    names = ("a", "b", "c")
    links = [Link(x, y, 0.0, 1.0, ("nic",) if x == "a" else ()) for x in names for y in names if x != y]
    start, of = Topology("t", tuple(Device(name, "cpu", 1.0) for name in names), tuple(links)).channels
    taken = [of[start[pair] : start[pair + 1]].tolist() for pair in range(9)]
    assert taken[0] == taken[4] == taken[8] == []
    assert taken[1] == taken[2]
    others = [taken[pair][0] for pair in (1, 3, 5, 6, 7)]
    assert len(set(others)) == 5


def test_uniform_links_join_every_pair_both_ways():
    joined = {x.source + x.target for x in uniform_links("abc", 0, 1)}
    assert joined == {"ab", "ba", "ac", "ca", "bc", "cb"}
