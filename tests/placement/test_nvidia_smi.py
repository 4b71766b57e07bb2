import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.placement.errors import SegueError
from segue.placement.gpus import GPUS
from segue.placement.nvidia_smi import load_topology_text, read_topo, topo_links
from segue.placement.topology import Device, check_topology

LEGEND = """
Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes
  NV#  = Connection traversing a bonded set of # NVLinks

NIC Legend:

  NIC0: mlx5_0
"""


def topo(rows, cores=None, nics=0, underline=False):
    """As nvidia-smi prints it: tabs, blanks around X, NIC and affinity columns."""
    names = [f"GPU{i}" for i in range(len(rows))]
    columns = [*names, *(f"NIC{i}" for i in range(nics))]
    head = "\t".join(["", *columns, "CPU Affinity", "NUMA Affinity", "GPU NUMA ID"])
    lines = [f"\x1b[4m{head}\x1b[0m" if underline else head]
    for i, (name, row) in enumerate(zip(names, rows, strict=True)):
        cells = [" X " if i == j else code for j, code in enumerate(row)]
        lines.append("\t".join([name, *cells, *["SYS"] * nics, (cores or ["0-15"] * len(rows))[i], "0", "N/A"]))
    lines += [f"NIC{i}\t" + "\t".join(["SYS"] * len(columns)) for i in range(nics)]
    return "\n".join(lines) + "\n" + LEGEND


def grid(count, code):
    return [[code(i, j) if i != j else "X" for j in range(count)] for i in range(count)]


TREE = grid(8, lambda i, j: "PIX" if i // 2 == j // 2 else "NODE" if i // 4 == j // 4 else "SYS")
"""Eight GPUs, two a switch, two switches a socket."""


def link(topology, source, target):
    return next(x for x in topology.links if (x.source, x.target) == (source, target))


def test_switches_sockets_and_lanes_are_channels():
    topology = read_topo(topo(TREE, nics=2, underline=True), ["L40S"])
    check_topology(topology)
    assert [device.name for device in topology.devices] == [f"gpu{i}" for i in range(8)]
    assert {device.model for device in topology.devices} == {"L40S"}
    assert link(topology, "gpu0", "gpu1").channels == ("host0.gpu0.up", "host0.gpu1.down")
    assert link(topology, "gpu0", "gpu2").channels == (
        "host0.gpu0.up",
        "host0.switch0.up",
        "host0.switch1.down",
        "host0.gpu2.down",
    )
    across = link(topology, "gpu1", "gpu6")
    assert "host0.cpu0->host0.cpu1" in across.channels
    assert set(across.channels) & set(link(topology, "gpu3", "gpu4").channels) == {"host0.cpu0->host0.cpu1"}
    assert topology.latency_s[0, 1] < topology.latency_s[0, 2] < topology.latency_s[0, 4]


def test_gpus_without_a_switch_have_only_their_lanes():
    topology = read_topo(topo(grid(4, lambda i, j: "PHB")), ["RTX 4090", "RTX 3090", "RTX 3080", "GTX 1080 Ti"])
    assert link(topology, "gpu0", "gpu1").channels == ("host0.gpu0.up", "host0.gpu1.down")
    narrow, wide = link(topology, "gpu0", "gpu3"), link(topology, "gpu0", "gpu1")
    assert wide.bandwidth_bytes_per_s == pytest.approx(2 * narrow.bandwidth_bytes_per_s, rel=0.01)


def test_bandwidth_grows_with_the_number_of_nvlinks():
    rows = [
        ["X", "NV1", "NV2", "SYS"],
        ["NV1", "X", "SYS", "NV2"],
        ["NV2", "SYS", "X", "NV1"],
        ["SYS", "NV2", "NV1", "X"],
    ]
    topology = read_topo(topo(rows, ["0-9", "0-9", "10-19", "10-19"]), ["V100 SXM2 16GB"])
    one, two = link(topology, "gpu0", "gpu1"), link(topology, "gpu0", "gpu2")
    assert one.bandwidth_bytes_per_s == pytest.approx(0.8 * 25e9)
    assert two.bandwidth_bytes_per_s == 2 * one.bandwidth_bytes_per_s
    assert one.channels == two.channels == ()
    assert "host0.cpu0->host0.cpu1" in link(topology, "gpu0", "gpu3").channels
    assert "host0.cpu0->host0.cpu1" in link(topology, "gpu1", "gpu2").channels


def test_more_nvlinks_than_a_gpu_has_mean_a_switch():
    topology = read_topo(topo(grid(8, lambda i, j: "NV18")), ["H100 SXM"])
    assert {x.bandwidth_bytes_per_s for x in topology.links} == {0.8 * 450e9}
    assert link(topology, "gpu0", "gpu1").channels == ("host0.gpu0.nvlink.up", "host0.gpu1.nvlink.down")
    pair = read_topo(topo(grid(2, lambda i, j: "NV12")), ["A100 SXM 80GB"])
    assert link(pair, "gpu0", "gpu1").channels == ()


def test_without_products_gpus_have_no_model_and_assumed_memory():
    (one,) = read_topo(topo([["X"]])).devices
    assert (one.model, one.kind, one.memory_bytes) == ("", "cuda", 16 * 2**30)


def test_text_that_was_pasted_with_blanks_and_a_prompt_is_read_too(tmp_path):
    text = "$ nvidia-smi topo -m\n" + re.sub(r"\t", "    ", topo(TREE, nics=1))
    (tmp_path / "lab.txt").write_text(text)
    topology = load_topology_text(tmp_path / "lab.txt", ["a10"])
    assert topology.name == "lab"
    assert topology.devices[0].memory_bytes == GPUS["A10"].memory_bytes
    assert topology.links == read_topo(topo(TREE), ["A10"]).links


def test_links_of_some_of_the_gpus():
    devices = [Device("cuda0", "cuda", 1e9, index=5), Device("cuda1", "cuda", 1e9, index=4)]
    there, _ = topo_links(topo(TREE), devices, [1e9, 2e9])
    assert (there.source, there.target) == ("cuda0", "cuda1")
    assert there.channels == ("host0.gpu5.up", "host0.gpu4.down")
    assert there.bandwidth_bytes_per_s == pytest.approx(0.8e9)
    with pytest.raises(SegueError, match=r"nvidia-smi topo -m: no row of GPU9 \(x\)"):
        topo_links(topo(TREE), [Device("x", "cuda", 1e9, index=9)], [1e9])


def edited(row, column, code, text=None):
    lines = (text or topo(TREE)).splitlines()
    cells = lines[row].split("\t")
    cells[column] = code
    lines[row] = "\t".join(cells)
    return "\n".join(lines)


def without(row):
    lines = topo(TREE).splitlines()
    return "\n".join(lines[:row] + lines[row + 1 :])


MALFORMED = {
    "nothing": ("", "line 1: no row of names"),
    "another text": ("hello\nworld\n", "line 2: no row of names"),
    "an error of the program": ("NVIDIA-SMI has failed\n", "line 1: no row of names"),
    "no header": (without(0), "no row of names"),
    "a row too few": (without(3), "line 1: GPU2 has a column, but no row follows"),
    "a row twice": (edited(3, 0, "GPU1"), "line 4: GPU1 has a row already"),
    "a column twice": (edited(0, 2, "GPU0"), "line 1: a name appears twice"),
    "a short row": ("GPU0 GPU1\nGPU0 X PIX\nGPU1 PIX\n", "line 3: expected 2 connections, got 1"),
    "an unknown connection": (
        edited(2, 3, "PCI"),
        "line 3: GPU1 to GPU2: expected NV#, PIX, PXB, PHB, NODE or SYS, got 'PCI'",
    ),
    "no NVLinks": (edited(2, 3, "NV0"), "line 3: GPU1 to GPU2: expected NV#"),
    "X off the diagonal": (edited(2, 3, "X"), "line 3: GPU1 to GPU2: expected NV#"),
    "no X on it": (edited(2, 2, "PIX"), "line 3: GPU1 to GPU1: expected X, got 'PIX'"),
    "one way only": (edited(1, 3, "PHB"), "line 4: GPU2 to GPU0: NODE, but the other way PHB"),
    "no tree": (edited(1, 5, "PIX", edited(5, 1, "PIX")), "GPU4 to GPU1: SYS, but others join them by PIX, PXB"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_text_is_refused_with_the_line_and_the_reason(tmp_path, case):
    text, message = MALFORMED[case]
    path = tmp_path / "topo.txt"
    path.write_text(text)
    with pytest.raises(SegueError) as error:
        load_topology_text(path)
    assert str(error.value).startswith(f"{path}: line ")
    assert message in str(error.value)


def test_products_must_be_known_and_one_or_as_many_as_gpus():
    with pytest.raises(SegueError, match="GPU products: expected one for all, or 8, got 2"):
        read_topo(topo(TREE), ["A10", "A10"])
    with pytest.raises(SegueError, match="GPU 'A1000': not in the table"):
        read_topo(topo(TREE), ["A1000"])


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_mutated_text_is_read_or_refused_in_one_line(refuses_or_reads, scratch, data):
    rows = data.draw(st.sampled_from([TREE, grid(8, lambda i, j: "NV12"), grid(2, lambda i, j: "PHB"), [["X"]]]))
    content = bytearray(topo(rows, nics=data.draw(st.integers(0, 2)), underline=data.draw(st.booleans())).encode())
    end = content.index(b"Legend")
    junk = st.sampled_from(
        [b"PIX", b"NV3", b"NV99999", b"X", b"\t", b"\n", b"\x1b[4m", b"GPU1", b"GPU00", b"SYS", b"\x00", b"\xff"]
    )
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, end - 1))
        content[start : start + data.draw(st.integers(0, 6))] = data.draw(st.one_of(junk, st.binary(max_size=3)))
    path = scratch / "topo.txt"
    path.write_bytes(content)
    topology = refuses_or_reads(load_topology_text, path)
    if topology is not None:
        check_topology(topology)
        assert np.isfinite(topology.seconds_per_byte).all()


@settings(max_examples=100, deadline=None)
@given(data=st.data(), count=st.integers(1, 6))
def test_any_matrix_of_connections_is_read_or_refused(data, count):
    codes = {
        (i, j): data.draw(st.sampled_from(["PIX", "PXB", "PHB", "NODE", "SYS", "NV2"]))
        for i in range(count)
        for j in range(i)
    }
    text = topo(grid(count, lambda i, j: codes[max(i, j), min(i, j)]))
    try:
        topology = read_topo(text, ["A30"])
    except SegueError as error:
        refusal = str(error)
        topology = None
    if topology is None:
        assert re.match(r"nvidia-smi topo -m: line \d+: GPU\d to GPU\d: \w+, but others join them by", refusal)
        return
    check_topology(topology)
    for (i, j), code in codes.items():
        across = [name for name in link(topology, f"gpu{i}", f"gpu{j}").channels if "->" in name]
        assert bool(across) == (code == "SYS")
