import numpy as np
import pytest

from segue.agent.search import Search
from segue.env import EnvConfig, ScenarioSampler
from segue.env.problem import make_problem
from segue.placement.move_cost import free_of_charge


@pytest.fixture
def search():
    case = ScenarioSampler(3, 20)(np.random.default_rng(2))
    clock, start = case.clock, np.asarray(case.start.devices, np.int64)
    problem = make_problem(clock, EnvConfig(16, clock.topology.num_devices))
    return Search(problem, start, 6, clock.microbatches, clock.costs.state_bytes, free_of_charge(start))


def maps(search, count):
    rng = np.random.default_rng(0)
    return list(rng.integers(0, search.problem.num_devices, (count, search.clock.graph.num_ops)))


def test_maps_are_priced_together_and_each_once(search):
    asked, price = [], search.clock.evaluate_many
    search.clock.evaluate_many = lambda rows: asked.append(len(rows)) or price(rows)
    one, two, three = maps(search, 3)
    search.visit(one, "first")
    visits = search.visit_all([two, one, three, two], "then")
    assert asked == [1, 2]
    assert search.left == 3
    assert visits[0] is visits[3]
    assert [visit.source for visit in visits] == ["then", "first", "then", "then"]
    for visit in visits:
        assert (visit.step_time_s, visit.overflow_bytes) == search.clock.evaluate(visit.devices)


def test_beyond_the_evaluations_no_map_is_priced(search):
    visits = search.visit_all(maps(search, 8), "all")
    assert [visit is None for visit in visits] == [False] * 6 + [True] * 2
    assert search.left == 0
    assert search.visit_all(maps(search, 8)[5:7], "again") == [visits[5], None]
