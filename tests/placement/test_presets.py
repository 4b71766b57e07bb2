import numpy as np
import pytest

from segue.placement.gpus import GPUS
from segue.placement.presets import preset, presets
from segue.placement.topology import check_topology

DECLARED = [name for name in presets() if not name.startswith("emulated")]


def link(topology, source, target):
    return next(x for x in topology.links if (x.source, x.target) == (source, target))


@pytest.mark.parametrize("name", DECLARED)
def test_a_declared_topology_is_of_gpus_with_the_memory_of_their_datasheets(name):
    topology = preset(name)
    check_topology(topology)
    assert topology.name == name
    for device in topology.devices:
        assert device.kind == "cuda"
        assert device.memory_bytes == GPUS[device.model].memory_bytes
        assert device.speed == 1.0
    places = [(device.host, device.index) for device in topology.devices]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("name", presets())
def test_every_pair_is_joined_alike_both_ways(name):
    topology = preset(name)
    assert len(topology.links) == topology.num_devices * (topology.num_devices - 1)
    np.testing.assert_array_equal(topology.seconds_per_byte, topology.seconds_per_byte.T)
    np.testing.assert_array_equal(topology.latency_s, topology.latency_s.T)


@pytest.mark.parametrize("name", DECLARED)
def test_no_two_directions_share_a_lane(name):
    topology = preset(name)
    for there in topology.links:
        back = link(topology, there.target, there.source)
        assert not set(there.channels) & set(back.channels)


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("emulated-1", "b575a16ef2dda16d"),
        ("emulated-2", "af1f130d34bdebab"),
        ("emulated-4", "01710297fb306793"),
        ("emulated-4-equal", "2bbb8e2ec92ab3f3"),
    ],
)
def test_saved_placements_on_emulated_presets_stay_valid(name, digest):
    assert preset(name).hash == digest


def test_there_are_workstations_servers_and_hosts():
    counts = {name: preset(name).num_devices for name in DECLARED}
    workstations = {count for name, count in counts.items() if name.startswith("workstation")}
    assert workstations == {2, 3, 4}
    for kind in ("pcie", "nvlink"):
        assert {count for name, count in counts.items() if name.startswith(kind)} == {4, 8}
    hosts = {len({d.host for d in preset(name).devices}) for name in DECLARED if name.startswith("hosts")}
    assert hosts == {2, 4}


def test_workstations_have_unequal_cards():
    for name in DECLARED:
        if name.startswith("workstation"):
            models = [device.model for device in preset(name).devices]
            assert len(set(models)) == len(models)


def test_gpus_of_one_pcie_switch_share_its_way_out_and_not_the_way_between_them():
    topology = preset("pcie-8-l40s")
    near, far = link(topology, "gpu0", "gpu1"), link(topology, "gpu0", "gpu2")
    assert near.channels == ("host0.gpu0.up", "host0.gpu1.down")
    assert far.channels == ("host0.gpu0.up", "host0.switch0.up", "host0.switch1.down", "host0.gpu2.down")
    assert "host0.switch0.up" in link(topology, "gpu1", "gpu3").channels
    across = link(topology, "gpu0", "gpu7")
    assert "host0.cpu0->host0.cpu1" in across.channels
    assert across.bandwidth_bytes_per_s < far.bandwidth_bytes_per_s
    assert near.latency_s < far.latency_s < across.latency_s


def test_the_slower_slot_sets_the_pace_of_a_link():
    topology = preset("workstation-a6000-3090-2080ti")
    fast, slow = link(topology, "gpu0", "gpu1"), link(topology, "gpu0", "gpu2")
    assert fast.bandwidth_bytes_per_s == pytest.approx(2 * slow.bandwidth_bytes_per_s, rel=0.01)


def test_four_gpus_share_their_nvlinks_out_and_eight_have_a_switch():
    four, eight = preset("nvlink-4-a100"), preset("nvlink-8-a100")
    assert link(four, "gpu0", "gpu1").channels == ()
    assert link(eight, "gpu0", "gpu1").channels == ("host0.gpu0.nvlink.up", "host0.gpu1.nvlink.down")
    ratio = link(eight, "gpu0", "gpu1").bandwidth_bytes_per_s / link(four, "gpu0", "gpu1").bandwidth_bytes_per_s
    assert ratio == pytest.approx(3.0)


def test_all_messages_out_of_a_host_take_turns_on_its_network_card():
    topology = preset("hosts-2x4-a100")
    inside, out = link(topology, "host0.gpu0", "host0.gpu1"), link(topology, "host0.gpu2", "host1.gpu3")
    assert inside.channels == ()
    assert out.channels == ("host0.gpu2.up", "host0.nic.up", "host1.nic.down", "host1.gpu3.down")
    assert out.bandwidth_bytes_per_s == pytest.approx(0.8 * 200e9 / 8)
    start, of = topology.channels
    count = topology.num_devices
    taken = [set(of[start[a * count + b] : start[a * count + b + 1]]) for a, b in ((0, 4), (1, 5), (0, 1), (4, 0))]
    assert len(taken[0] & taken[1]) == 2
    assert not taken[0] & taken[2]
    assert not taken[0] & taken[3]


def test_unequal_cards_of_a_host_meet_on_pcie():
    topology = preset("hosts-2x2-4090-3090")
    assert link(topology, "host0.gpu0", "host0.gpu1").channels == ("host0.gpu0.up", "host0.gpu1.down")
    assert [device.model for device in topology.devices] == ["RTX 4090", "RTX 3090"] * 2
