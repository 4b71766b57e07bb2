import json

import numpy as np
import pytest

from segue.placement.errors import SegueError
from segue.placement.objectives import OBJECTIVES
from segue.placement.planners import PLANNERS, plan
from segue.placement.workload import read_workload
from segue.placement.workload_clock import WorkloadClock
from tests.placement.workloads import random_record


@pytest.fixture
def workload(tmp_path):
    path = tmp_path / "w.json"
    record = random_record(3, count=9)
    record["nodes"] = record["nodes"][::-1]
    path.write_text(json.dumps(record))
    return read_workload(path)


@pytest.mark.parametrize("objective", ["max-load", "latency"])
def test_a_map_is_worth_what_the_benchmark_says(workload, objective) -> None:
    clock = WorkloadClock(workload, objective)
    rng = np.random.default_rng(0)
    for _ in range(50):
        nodes = rng.integers(0, workload.accelerators + 1, workload.num_nodes)
        devices = clock.op_devices(nodes)
        assert clock.node_devices(devices).tolist() == nodes.tolist()
        score = OBJECTIVES[objective](workload, nodes)
        value, overflow = clock.evaluate(devices)
        assert value == score.value_ms / 1e3
        assert (overflow == 0) == score.feasible


@pytest.mark.parametrize("objective", ["max-load", "latency"])
@pytest.mark.parametrize("name", sorted(PLANNERS))
def test_every_planner_places_a_workload(workload, objective, name) -> None:
    clock = WorkloadClock(workload, objective)
    if (name, objective) == ("cp-sat", "latency"):
        with pytest.raises(SegueError, match="has no model of a workload's latency"):
            plan(name, clock)
        return
    found = plan(name, clock, evaluations=200)
    assert (found.overflow_bytes == 0) == clock.score(found.devices).feasible


def test_an_unknown_objective_is_named(workload) -> None:
    with pytest.raises(SegueError, match="objective 'speed': no such objective; known: max-load, latency"):
        WorkloadClock(workload, "speed")
