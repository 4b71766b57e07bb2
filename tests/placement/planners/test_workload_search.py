import itertools
import json

import numpy as np
import pytest

from segue.placement.errors import SegueError
from segue.placement.objectives import OBJECTIVES, device_bytes, device_loads
from segue.placement.planners.unit_moves import make_draft, make_state, move, propose
from segue.placement.planners.units import cut, make_units
from segue.placement.planners.workload_search import search
from segue.placement.workload import Workload, read_workload
from tests.placement.workloads import BENCHMARK, needs_benchmark, random_record

REFERENCE = json.loads((BENCHMARK / "reference.json").read_text()) if BENCHMARK.is_dir() else {}


def workload(tmp_path, seed: int, **fields) -> Workload:
    path = tmp_path / "workload.json"
    path.write_text(json.dumps(random_record(seed, **fields)))
    return read_workload(path)


def exact(w: Workload, objective: str) -> float:
    """The least value of all placements that are allowed."""
    scores = (
        OBJECTIVES[objective](w, np.array(devices))
        for devices in itertools.product(range(w.accelerators + 1), repeat=w.num_nodes)
    )
    return min(score.value_ms for score in scores if score.feasible)


@pytest.mark.parametrize("objective", list(OBJECTIVES))
@pytest.mark.parametrize("seed", range(6))
def test_small_workloads_are_solved(tmp_path, objective, seed):
    w = workload(tmp_path, seed)
    found = search(w, objective, seed=seed, evaluations=20_000)
    assert found.score.feasible
    assert found.score == OBJECTIVES[objective](w, found.devices)
    assert found.score.value_ms == pytest.approx(exact(w, objective))


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_the_seed_and_the_evaluations_decide(tmp_path, objective):
    w = workload(tmp_path, 3, count=30, accelerators=4, maxSizePerFPGA=30.0)
    first, again = (search(w, objective, seed=5, evaluations=30_000) for _ in range(2))
    assert (first.devices == again.devices).all()
    assert first.evaluations == again.evaluations == 30_000
    more = search(w, objective, seed=5, evaluations=60_000)
    assert more.score.value_ms <= first.score.value_ms


def test_the_budget_ends_the_search(tmp_path):
    w = workload(tmp_path, 3, count=30, accelerators=4)
    assert 0.2 <= search(w, "max-load", budget_s=0.2).planning_s < 1.0


def test_without_accelerators_all_is_on_the_cpus(tmp_path):
    found = search(workload(tmp_path, 1, accelerators=0), "latency", budget_s=5.0)
    assert not found.devices.any()
    assert found.planning_s < 1.0


def test_nothing_allowed_is_said(tmp_path):
    record = random_record(1, maxCPUs=0, maxSizePerFPGA=1.0)
    for node in record["nodes"]:
        node.update(supportedOnFpga=1, size=2.0)
    path = tmp_path / "workload.json"
    path.write_text(json.dumps(record))
    found = search(read_workload(path), "max-load", evaluations=1000)
    assert not found.score.feasible


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"objective": "speed", "evaluations": 1}, "objective 'speed': no such objective"),
        ({"objective": "latency"}, "needs a budget or a number"),
        ({"objective": "latency", "budget_s": 0.0}, "budget must be > 0"),
        ({"objective": "latency", "budget_s": float("nan")}, "budget must be > 0"),
        ({"objective": "latency", "evaluations": -1}, "evaluations must be > 0"),
    ],
)
def test_bad_limits_are_refused(tmp_path, options, reason):
    with pytest.raises(SegueError, match=reason):
        search(workload(tmp_path, 1), **options)


def test_loads_follow_every_move(tmp_path):
    w = workload(tmp_path, 2, count=40, accelerators=3)
    units = make_units(w, np.random.default_rng(0))
    state, draft = make_state(w, units, 7), make_draft(units)
    for _ in range(3000):
        for place in range(propose(units, state, draft)):
            move(w.flow, units, state, draft.units[place], draft.targets[place])
    assert len(np.unique(state.devices)) > 2
    assert state.loads == pytest.approx(device_loads(w, state.devices))
    assert state.held == pytest.approx(device_bytes(w, state.devices))
    assert (state.unit_device[units.of_node] == state.devices).all()
    assert (state.devices[~w.supported] == 0).all()


def test_units_come_in_topological_order_and_keep_classes_whole(tmp_path):
    w = workload(tmp_path, 4, count=40, accelerators=3)
    w.color[:] = -1
    for seed in range(4):
        units = make_units(w, np.random.default_rng(seed))
        assert (units.of_node[w.edges[:, 0]] < units.of_node[w.edges[:, 1]]).all()
    colored = workload(tmp_path, 4, count=40, accelerators=3)
    units = make_units(colored, np.random.default_rng(0))
    assert units.of_node[0] == units.of_node[1]
    assert len(units.free) == 39


@pytest.mark.parametrize("seed", range(4))
def test_a_cut_is_the_best_of_all_cuts(tmp_path, seed):
    w = workload(tmp_path, seed, count=7, accelerators=2)
    w.supported[:] = True
    units = make_units(w, np.random.default_rng(seed))
    count = len(units.free)
    values = []
    for i, j in itertools.combinations_with_replacement(range(count + 1), 2):
        for runs in itertools.permutations(range(3)):
            pieces = np.repeat(runs, [i, j - i, count - j])
            score = OBJECTIVES["max-load"](w, pieces[units.of_node])
            values += [score.value_ms] if score.feasible else []
    devices = cut(w, units, total=False)
    assert OBJECTIVES["max-load"](w, devices[units.of_node]).value_ms == pytest.approx(min(values))


@needs_benchmark
@pytest.mark.parametrize(
    ("objective", "row"),
    [("max-load", row) for row in REFERENCE.get("max_load", [])]
    + [("latency", row) for row in REFERENCE.get("latency", [])],
    ids=lambda value: value if isinstance(value, str) else value["workload"],
)
def test_public_workloads_reach_the_best_known_value(objective, row):
    folder = "latency" if objective == "latency" else "throughput"
    w = read_workload(BENCHMARK / folder / f"{row['workload']}.json")
    found = search(w, objective, evaluations=1_500_000 if objective == "max-load" else 300_000)
    assert found.score.feasible
    if objective == "max-load":
        assert found.score.value_ms <= 1.01 * row["best_known"]
    else:
        assert found.score.value_ms <= min(row["greedy"], row.get("expert") or np.inf) * (1 + 1e-9)


def test_a_known_placement_is_not_lost(tmp_path):
    w = workload(tmp_path, 3)
    long = search(w, "max-load", seed=0, evaluations=20_000)
    short = search(w, "max-load", seed=1, evaluations=1, start=long.devices)
    assert short.score == long.score
