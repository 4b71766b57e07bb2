import json

import numpy as np
import pytest

from segue.experiments.solve import solve
from segue.placement.workload import read_workload
from segue.placement.workload_clock import WorkloadClock
from tests.placement.workloads import random_record


@pytest.fixture
def clock(tmp_path):
    path = tmp_path / "workload.json"
    path.write_text(json.dumps(random_record(3, count=8)))
    return WorkloadClock(read_workload(path), "max-load")


def test_the_agent_goes_on_with_the_annealing_of_workloads(clock):
    agent = solve("agent", clock, evaluations=5000)
    annealing = solve("annealing", clock, evaluations=20_000, seed=1)
    assert agent.planner == "agent"
    assert agent.evaluations <= 5000
    assert agent.value_s == pytest.approx(annealing.value_s)
    assert clock.evaluate(agent.devices) == (agent.value_s, agent.overflow_bytes)


def test_few_evaluations_are_the_policys_alone(clock):
    agent = solve("agent", clock, evaluations=30)
    assert agent.evaluations <= 30


def test_the_same_seed_gives_the_same_plan(clock):
    one, two = (solve("agent", clock, evaluations=3000, seed=4) for _ in range(2))
    assert np.array_equal(one.devices, two.devices)
    assert one.evaluations == two.evaluations
