import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.placement.costs import (
    ARITHMETIC_SHARE,
    LAUNCH_S,
    MEMORY_SHARE,
    MOST_BENT,
    Profile,
    fractions,
    make_costs,
    microbatch_sizes,
    on_product,
    roofline,
)
from segue.placement.errors import SegueError
from segue.placement.gpus import GPUS
from segue.placement.graph import make_graph
from segue.placement.topology import Device, Topology, uniform_links

GRAPH = make_graph("g", [(0, 1)], parameter_bytes=[100, 0], buffer_bytes=[0, 8])
PROFILE = Profile(np.array([1.0, 2.0]), np.array([3.0, 0.0]), np.array([0.5, 0.0]), "measured")


def two_devices(model=""):
    devices = tuple(Device(f"d{i}", "emulated", 1e9, model=model) for i in range(2))
    return Topology("two", devices, uniform_links(["d0", "d1"], 0.0, 1e9))


def write(path, record):
    path.write_text(json.dumps(record))
    return path


def test_a_saved_profile_is_read_back_whole(tmp_path):
    PROFILE.save(tmp_path / "profile.json", GRAPH)
    again = Profile.load(tmp_path / "profile.json", GRAPH)
    for field in ("forward_s", "backward_s", "update_s"):
        np.testing.assert_array_equal(getattr(again, field), getattr(PROFILE, field))
    assert again.source == "measured"


def test_a_profile_keeps_the_product_it_is_of_and_writes_none_where_there_is_none(tmp_path):
    of_gpu = Profile(PROFILE.forward_s, PROFILE.backward_s, PROFILE.update_s, "measured", "A10")
    of_gpu.save(tmp_path / "gpu.json", GRAPH)
    assert Profile.load(tmp_path / "gpu.json", GRAPH).model == "A10"
    PROFILE.save(tmp_path / "cpu.json", GRAPH)
    assert "model" not in json.loads((tmp_path / "cpu.json").read_text())
    assert Profile.load(tmp_path / "cpu.json", GRAPH).model == ""


def test_a_profile_keeps_what_ops_work_in_and_writes_none_where_it_was_not_measured(tmp_path):
    measured = replace(PROFILE, working_bytes=np.array([5e6, 7.0]))
    measured.save(tmp_path / "measured.json", GRAPH)
    assert Profile.load(tmp_path / "measured.json", GRAPH).working_bytes.tolist() == [5e6, 7.0]
    PROFILE.save(tmp_path / "not.json", GRAPH)
    assert "working_bytes" not in json.loads((tmp_path / "not.json").read_text())
    assert Profile.load(tmp_path / "not.json", GRAPH).working_bytes is None


def test_ops_work_in_what_was_measured_on_the_devices_product_and_elsewhere_in_what_the_graph_says():
    usual = make_costs(GRAPH, two_devices(), PROFILE).working_bytes
    measured = replace(PROFILE, working_bytes=usual + 1.0)
    assert make_costs(GRAPH, two_devices(), measured).working_bytes.tolist() == (usual + 1.0).tolist()
    assert make_costs(GRAPH, two_devices("A10"), measured).working_bytes.tolist() == usual.tolist()
    of_gpu = replace(measured, model="A10")
    assert make_costs(GRAPH, two_devices("A10"), of_gpu).working_bytes.tolist() == (usual + 1.0).tolist()


@pytest.fixture
def record(tmp_path):
    PROFILE.save(tmp_path / "profile.json", GRAPH)
    return json.loads((tmp_path / "profile.json").read_text())


def op(name, value):
    return lambda r: r["forward_s"].__setitem__(name, value)


MALFORMED = {
    "wrong format": (lambda r: r.__setitem__("format", "1"), "format: expected 'segue.profile/1', got '1'"),
    "missing field": (lambda r: r.pop("update_s"), "update_s: missing"),
    "unknown field": (lambda r: r.__setitem__("unit", "s"), "unit: unknown field; known: format, graph, forward_s"),
    "another graph": (lambda r: r.__setitem__("graph", "0123"), "graph: taken of graph 0123, but g is "),
    "an op too few": (lambda r: r["forward_s"].pop("op1"), "forward_s: expected seconds for each op of g"),
    "an op too many": (op("op2", 1.0), "forward_s: expected seconds for each op of g"),
    "a list": (lambda r: r.__setitem__("backward_s", [1, 2]), "backward_s: expected seconds for each op of g"),
    "text": (op("op1", "long"), "forward_s[op1] must be a number"),
    "none": (op("op1", None), "forward_s[op1] must be a number"),
    "working bytes of one op": (
        lambda r: r.__setitem__("working_bytes", {"op0": 1}),
        "working_bytes: expected bytes for each op of g",
    ),
    "negative": (op("op1", -1), "forward_s[op1] must be >= 0, got -1"),
    "NaN": (op("op1", float("nan")), "forward_s[op1] must be finite, got nan"),
    "beyond floats": (op("op1", 10**400), "forward_s[op1] must be finite, got inf"),
    "unknown model": (lambda r: r.__setitem__("model", "A1000"), "model must be one of GTX 1080 Ti, RTX 2080 Ti"),
    "model of none": (lambda r: r.__setitem__("model", None), "model must be text, got NoneType"),
    "source of none": (lambda r: r.__setitem__("source", None), "source must be text, got NoneType"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_profile_is_refused_with_the_file_the_field_and_the_reason(tmp_path, record, case):
    mutate, message = MALFORMED[case]
    mutate(record)
    path = write(tmp_path / "profile.json", record)
    with pytest.raises(SegueError) as error:
        Profile.load(path, GRAPH)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_mutated_profile_file_is_read_or_refused_in_one_line(mutations, refuses_or_reads, scratch, data):
    PROFILE.save(scratch / "profile.json", GRAPH)
    record = json.loads((scratch / "profile.json").read_text())
    path = write(scratch / "mutated.json", data.draw(mutations(record)))
    profile = refuses_or_reads(lambda p: Profile.load(p, GRAPH), path)
    if profile is not None:
        assert np.isfinite(profile.forward_s).all()


def test_costs_divide_the_profile_by_each_devices_speed():
    devices = (Device("a", "cpu", 1e9, 2.0, 0.25), Device("b", "cpu", 1e9, 0.5))
    topology = Topology("t", devices, uniform_links("ab", 0.0, 1.0))
    costs = make_costs(GRAPH, topology, PROFILE)
    assert costs.on_devices(costs.forward_s).tolist() == [[0.5, 2.0], [1.0, 4.0]]
    assert costs.on_devices(costs.backward_s).tolist() == [[1.5, 6.0], [0.0, 0.0]]
    assert costs.on_devices(costs.update_s).tolist() == [[0.25, 1.0], [0.0, 0.0]]
    assert costs.overhead_s.tolist() == [0.25, 0.0]
    assert costs.state_bytes.tolist() == [400.0, 8.0]
    assert make_costs(GRAPH, topology, PROFILE, 1.0).state_bytes.tolist() == [300.0, 8.0]


def test_an_op_takes_the_longer_of_arithmetic_and_traffic():
    graph = make_graph("g", [(0, 1)], forward_flops=[2e10, 0], backward_flops=[4e10, 0], read_bytes=[0, 5e9])
    profile = roofline(graph)
    assert profile.forward_s.tolist() == [1.0, 1.0]
    assert profile.backward_s.tolist() == [2.0, 0.0]


KINDS = make_graph(
    "kinds",
    [(0, 1), (1, 2), (2, 3)],
    kinds=["conv2d", "conv2d", "relu", "view"],
    forward_flops=[4e12, 8e12, 1e6, 0],
    backward_flops=[8e12, 16e12, 1e6, 0],
    read_bytes=[1e6, 1e6, 1e9, 0],
    written_bytes=[1e6, 1e6, 1e9, 0],
    parameter_bytes=[1e6, 0, 0, 0],
)


def devices_of(*models, speed=1.0):
    devices = [Device(f"d{i}", "cuda", 1e9, speed, model=model) for i, model in enumerate(models)]
    return Topology("t", tuple(devices), uniform_links([device.name for device in devices], 0.0, 1.0))


def scaled(profile, forward=1.0, backward=1.0, update=1.0, model=None):
    columns = (profile.forward_s * forward, profile.backward_s * backward, profile.update_s * update)
    return Profile(*columns, "measured", profile.model if model is None else model)


def test_an_op_on_a_gpu_takes_the_longer_of_both_at_what_kernels_achieve_and_a_launch():
    gpu = GPUS["A100 SXM 40GB"]
    profile = roofline(KINDS, gpu)
    assert profile.model == "A100 SXM 40GB"
    assert profile.forward_s[0] == pytest.approx(4e12 / (ARITHMETIC_SHARE * 156e12) + LAUNCH_S)
    assert profile.forward_s[2] == pytest.approx(2e9 / (MEMORY_SHARE * 1555e9) + LAUNCH_S)
    assert profile.backward_s[2] == pytest.approx(4e9 / (MEMORY_SHARE * 1555e9) + LAUNCH_S)
    assert profile.forward_s[3] == LAUNCH_S
    assert profile.backward_s[3] == 0.0
    assert (profile.update_s > 0).tolist() == [True, False, False, False]


def test_products_run_in_float32_where_there_is_no_tf32():
    ratio = roofline(KINDS, GPUS["T4"]).forward_s / roofline(KINDS, GPUS["A10"]).forward_s
    assert ratio[0] == pytest.approx(62.5 / 8.1, rel=1e-3)
    assert ratio[2] == pytest.approx(2.0, rel=1e-3)


def test_a_declared_device_takes_its_products_roofline_over_its_speed():
    costs = make_costs(KINDS, devices_of("A10", "T4", speed=0.5))
    for column, name in enumerate(("A10", "T4")):
        expected = roofline(KINDS, GPUS[name])
        np.testing.assert_allclose(costs.on_devices(costs.forward_s)[:, column], 2 * expected.forward_s)
        np.testing.assert_allclose(costs.on_devices(costs.backward_s)[:, column], 2 * expected.backward_s)
        np.testing.assert_allclose(costs.on_devices(costs.update_s)[:, column], 2 * expected.update_s)


def test_devices_of_one_product_and_speed_share_a_column():
    topology = devices_of("A10", "T4", "A10", "T4")
    slowed = topology.with_speed(np.array([1.0, 1.0, 0.5, 1.0]))
    assert make_costs(KINDS, topology).device_class.tolist() == [0, 1, 0, 1]
    assert make_costs(KINDS, slowed).device_class.tolist() == [1, 2, 0, 2]
    assert make_costs(KINDS, slowed).forward_s.shape == (4, 3)


def test_a_uniformly_slow_cpu_says_nothing_about_a_gpu():
    costs = make_costs(KINDS, devices_of("A10"), scaled(roofline(KINDS), 30.0, 20.0, 7.0))
    np.testing.assert_allclose(costs.forward_s[:, 0], roofline(KINDS, GPUS["A10"]).forward_s)
    np.testing.assert_allclose(costs.backward_s[:, 0], roofline(KINDS, GPUS["A10"]).backward_s)
    np.testing.assert_allclose(costs.update_s[:, 0], roofline(KINDS, GPUS["A10"]).update_s)


def test_kinds_of_ops_that_were_measured_dear_are_dear_on_a_gpu_too_in_part():
    dear = np.array([1.0, 1.0, 3.0, 1.0])
    reference = roofline(KINDS)
    overall = (reference.forward_s * dear).sum() / reference.forward_s.sum()
    got = on_product(KINDS, scaled(reference, dear), "A10").forward_s / roofline(KINDS, GPUS["A10"]).forward_s
    np.testing.assert_allclose(got, [1 / overall, 1 / overall, 3 / overall, 1.0])
    very = on_product(KINDS, scaled(reference, np.array([1, 1, 1e6, 1])), "A10").forward_s
    np.testing.assert_allclose(very[0], roofline(KINDS, GPUS["A10"]).forward_s[0] / MOST_BENT)


def test_ops_of_one_kind_are_scaled_alike():
    uneven = scaled(roofline(KINDS), np.array([0.2, 5.0, 1.0, 1.0]))
    got = on_product(KINDS, uneven, "A10").forward_s / roofline(KINDS, GPUS["A10"]).forward_s
    assert got[0] == pytest.approx(got[1])


def test_what_was_measured_on_a_gpu_keeps_its_scale_on_another():
    measured = scaled(roofline(KINDS, GPUS["A10"]), 3.0, 2.0, 1.5)
    costs = make_costs(KINDS, devices_of("A10", "T4"), measured)
    np.testing.assert_allclose(costs.on_devices(costs.forward_s)[:, 0], measured.forward_s)
    np.testing.assert_allclose(costs.on_devices(costs.forward_s)[:, 1], 3 * roofline(KINDS, GPUS["T4"]).forward_s)
    np.testing.assert_allclose(costs.on_devices(costs.backward_s)[:, 1], 2 * roofline(KINDS, GPUS["T4"]).backward_s)


def test_a_device_without_a_model_beside_a_declared_one_is_relative_to_that():
    topology = devices_of("A10", "").with_speed(np.array([1.0, 0.02]))
    for profile in (None, scaled(roofline(KINDS, GPUS["A10"]), 3.0), scaled(roofline(KINDS), 9.0)):
        costs = make_costs(KINDS, topology, profile)
        columns = costs.on_devices(costs.forward_s)
        np.testing.assert_allclose(columns[:, 1], 50 * columns[:, 0])
    costs = make_costs(KINDS, devices_of("", "A10"), scaled(roofline(KINDS), 9.0))
    np.testing.assert_allclose(costs.on_devices(costs.forward_s)[:, 0], 9 * roofline(KINDS).forward_s)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), model=st.sampled_from(["", "T4", "H200"]), of=st.sampled_from(["", "A10"]))
def test_whatever_was_measured_costs_are_finite_and_within_the_bend(problems, data, model, of):
    drawn = data.draw(problems)
    profile = scaled(drawn.profile, model=of)
    topology = devices_of(model, "B200")
    costs = make_costs(drawn.graph, topology, profile)
    for field in ("forward_s", "backward_s", "update_s"):
        columns = getattr(costs, field)
        assert np.isfinite(columns).all()
        assert (columns >= 0).all()
        bare = getattr(roofline(drawn.graph, GPUS["B200"]), field)
        bent = costs.on_devices(columns)[:, 1]
        if not of:
            assert (bent <= bare * MOST_BENT * (1 + 1e-9)).all()
            assert (bent >= bare / MOST_BENT * (1 - 1e-9)).all()


@given(batch=st.integers(1, 500), parts=st.integers(1, 40))
def test_a_batch_is_cut_as_torch_chunk_cuts_it(batch, parts):
    torch = pytest.importorskip("torch")
    sizes = microbatch_sizes(batch, parts)
    assert sizes == [len(part) for part in torch.zeros(batch).chunk(parts)]
    assert fractions(sizes)[0] == 1.0
    assert fractions(sizes).sum() == pytest.approx(batch / sizes[0])
