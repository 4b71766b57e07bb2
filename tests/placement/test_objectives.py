import json

import numpy as np
import pytest

from segue.placement.errors import SegueError
from segue.placement.objectives import latency, max_load
from segue.placement.split_file import read_map, read_split
from segue.placement.workload import Workload, read_workload
from tests.placement.workloads import BENCHMARK, needs_benchmark, random_record

REFERENCE = json.loads((BENCHMARK / "reference.json").read_text()) if BENCHMARK.is_dir() else {}
LOADS = REFERENCE.get("max_load", []) + REFERENCE.get("max_load_12GBps", [])
LATENCIES = REFERENCE.get("latency", [])


def by_name(rows):
    return pytest.mark.parametrize("row", rows, ids=[row["workload"] for row in rows])


def same(value: float, published: float) -> bool:
    """Equal to 1e-6, or to the six digits that some published figures have."""
    return value == pytest.approx(published, rel=1e-6) or f"{value:.6g}" == f"{published:.6g}"


def workload(seed: int, tmp_path, **fields) -> Workload:
    path = tmp_path / "workload.json"
    path.write_text(json.dumps(random_record(seed, **fields)))
    return read_workload(path)


def chain(tmp_path, costs=(1.0, 2.0, 0.0), edges=((0, 1), (1, 2))) -> Workload:
    nodes = [
        {"id": i, "supportedOnFpga": 1, "cpuLatency": 50.0, "fpgaLatency": 10.0 + i, "isBackwardNode": 0, "size": 1.0}
        for i in range(3)
    ]
    links = [{"sourceId": a, "destId": b, "cost": costs[a]} for a, b in edges]
    path = tmp_path / "chain.json"
    path.write_text(json.dumps({"maxSizePerFPGA": 2.0, "maxFPGAs": 2, "maxCPUs": 1, "nodes": nodes, "edges": links}))
    return read_workload(path)


def plain_loads(w: Workload, devices) -> list[float]:
    """The definition, word by word."""
    loads = []
    for device in range(w.accelerators + 1):
        own = devices == device
        load = float((w.cpu_ms if device == 0 else w.accelerator_ms)[own].sum())
        if device:
            sent = {a for a, b in w.edges.tolist() if devices[a] == device != devices[b]}
            received = {a for a, b in w.edges.tolist() if devices[a] != device == devices[b]}
            load += float(w.cost_ms[list(sent)].sum() + w.cost_ms[list(received)].sum())
        loads.append(load)
    return loads


def plain_latency(w: Workload, devices) -> float:
    """Start times raised until nothing changes; infinite if that does not end."""
    loads, end = plain_loads(w, devices), np.zeros(w.num_nodes)
    for _ in range(w.num_nodes + 2):
        before = end.copy()
        for v in range(w.num_nodes):
            group = [v] if devices[v] == 0 else np.flatnonzero(devices == devices[v]).tolist()
            ready = max((before[a] for a, b in w.edges.tolist() if b in group and a not in group), default=0.0)
            end[v] = ready + (w.cpu_ms[v] if devices[v] == 0 else loads[devices[v]])
        if (end == before).all():
            return float(end.max())
    return float("inf")


@pytest.mark.parametrize("seed", range(8))
def test_both_objectives_are_their_definitions(seed, tmp_path):
    w = workload(seed, tmp_path)
    w.cpu_ms[:] += 1.0
    w.accelerator_ms[:] += 1.0
    rng = np.random.default_rng(seed)
    infinite = 0
    for _ in range(60):
        devices = rng.integers(0, 3, w.num_nodes)
        assert max_load(w, devices).value_ms == pytest.approx(max(plain_loads(w, devices)))
        expected = plain_latency(w, devices)
        assert latency(w, devices).value_ms == pytest.approx(expected)
        infinite += expected == np.inf
    assert infinite < 60


def test_an_output_is_sent_once_and_received_once_a_device(tmp_path):
    w = chain(tmp_path, edges=((0, 1), (0, 2)))
    assert max_load(w, np.array([1, 2, 2])).value_ms == 11 + 12 + 1
    assert max_load(w, np.array([1, 2, 0])).value_ms == 50
    assert max_load(w, np.array([0, 1, 1])).value_ms == 50


def test_latency_adds_up_along_a_chain(tmp_path):
    assert latency(chain(tmp_path), np.array([1, 1, 2])).value_ms == (10 + 11 + 2) + (2 + 12)
    assert latency(chain(tmp_path), np.array([0, 0, 0])).value_ms == 150


def test_each_reason_is_named(tmp_path):
    w = workload(1, tmp_path, accelerators=2)
    fits = np.zeros(w.num_nodes, np.int64)
    assert max_load(w, fits).feasible
    assert "share a colour class" in max_load(w, np.array([1, 0, 0, 0, 0, 0])).reasons[0]
    assert "node 43 is on accelerator 1" in max_load(w, np.array([0, 0, 0, 0, 1, 0])).reasons[0]
    assert "3 accelerators are used; there are 2" in max_load(w, np.array([1, 1, 2, 3, 0, 0])).reasons[0]
    assert "accelerator 1: 3 bytes do not fit 2" in max_load(chain(tmp_path), np.array([1, 1, 1])).reasons
    none = workload(1, tmp_path, accelerators=1, maxCPUs=1)
    assert not max_load(none, np.array([1, 1, 2, 0, 0, 0])).feasible


def test_a_path_that_comes_back_makes_the_latency_infinite(tmp_path):
    score = latency(chain(tmp_path), np.array([1, 2, 1]))
    assert score.value_ms == np.inf
    assert "a path leaves" in score.reasons[0]
    assert max_load(chain(tmp_path), np.array([1, 2, 1])).feasible


@pytest.mark.parametrize("devices", [[0, 0], [0, 0, -1], [0.0, 0.0, 0.0]])
def test_devices_of_the_wrong_form_are_refused(tmp_path, devices):
    with pytest.raises(SegueError, match="expected one device >= 0 for each of 3 nodes"):
        max_load(chain(tmp_path), np.array(devices))


@needs_benchmark
@by_name(LOADS)
def test_published_max_loads_are_reproduced(row):
    w, name = read_workload(BENCHMARK / "throughput" / f"{row['workload']}.json"), row["workload"].replace("/", "__")
    assert same(max_load(w, np.ones(w.num_nodes, np.int64)).value_ms, row["one_accelerator"])
    expert = BENCHMARK / "human_experts" / f"{row['workload'].split('/')[1]}_expert.json"
    if row.get("expert") and expert.is_file():
        assert same(max_load(w, read_split(expert, w)).value_ms, row["expert"])
    if "best_known" in row:
        for figure, devices in (
            ("contiguous_optimum", read_split(BENCHMARK / "splits" / f"throughput__{name}__dp.json", w)),
            ("best_known", read_map(BENCHMARK / "best_known" / f"{name}.json", w)),
        ):
            score = max_load(w, devices)
            assert score.value_ms == pytest.approx(row[figure], rel=1e-6)
            assert score.feasible


@needs_benchmark
@by_name(LATENCIES)
def test_published_latencies_are_reproduced(row):
    w, name = read_workload(BENCHMARK / "latency" / f"{row['workload']}.json"), row["workload"].replace("/", "__")
    score = latency(w, read_split(BENCHMARK / "splits" / f"latency__{name}__greedy.json", w))
    assert score.value_ms == pytest.approx(row["greedy"], rel=1e-6)
    assert score.feasible
    expert = BENCHMARK / "human_experts" / f"{row['workload'].split('/')[1]}_expert.json"
    if expert.is_file():
        score = latency(w, read_split(expert, w))
        # One published expert uses an accelerator more than its workload has, and another overflows memory.
        assert not score.feasible
        assert row["expert"] is None or score.value_ms == pytest.approx(row["expert"], rel=1e-6)
