from dataclasses import replace

import numpy as np
import pytest
import torch

from segue.agent.network import PlacementNetwork
from segue.agent.rollout import roll_out
from segue.agent.search import Search, SearchSettings
from segue.env import EnvConfig, ScenarioSampler
from segue.env.problem import make_problem
from segue.placement.move_cost import free_of_charge

ENDLESS = SearchSettings(patience=1000, halving=1000)


class Unstoppable(PlacementNetwork):
    """Never wants to stop."""

    def score(self, encoding, units, moves):
        scores = super().score(encoding, units, moves)
        return scores._replace(stop=torch.full_like(scores.stop, -100.0))


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    return Unstoppable(hidden=16, rounds=1).eval()


class Recorder:
    """Starts of one problem, and how many placements were priced at once."""

    def __init__(self, evaluations, starts):
        case = ScenarioSampler(4, 30)(np.random.default_rng(5))
        clock, start = case.clock, np.asarray(case.start.devices, np.int64)
        problem = make_problem(clock, EnvConfig(24, clock.topology.num_devices))
        self.search = Search(
            problem, start, evaluations + starts, clock.microbatches, clock.costs.state_bytes, free_of_charge(start)
        )
        rng = np.random.default_rng(1)
        rows = rng.integers(0, clock.topology.num_devices, (starts - 1, clock.graph.num_ops))
        self.starts = self.search.visit_all([start, *rows], "start")
        self.rounds, self.asked, price = [], [], clock.evaluate_many

        def record(maps):
            self.rounds.append(len(maps))
            self.asked += [row.tobytes() for row in maps]
            return price(maps)

        clock.evaluate_many = record


def test_all_rollouts_are_priced_together_until_the_evaluations_are_used_up(policy):
    run = Recorder(30, starts=4)
    roll_out(run.search, policy, run.starts, ENDLESS, floor=10)
    assert run.rounds == [4] * 5
    assert run.search.left == 10


def test_no_placement_is_entered_twice(policy):
    run = Recorder(60, starts=2)
    roll_out(run.search, policy, [run.starts[0]] * 3 + [run.starts[1]] * 2, ENDLESS)
    assert run.rounds == [5] * 12
    assert len({*run.asked, *(visit.devices.tobytes() for visit in run.starts)}) == 62


def test_the_worse_half_ends_again_and_again(policy):
    run = Recorder(100, starts=8)
    roll_out(run.search, policy, run.starts, replace(ENDLESS, halving=3))
    assert run.rounds[:12] == [8] * 3 + [4] * 3 + [2] * 3 + [1] * 3


def test_rollouts_without_anything_better_lose_patience(policy):
    run = Recorder(400, starts=4)
    roll_out(run.search, policy, run.starts, replace(ENDLESS, patience=3))
    assert 3 * 4 <= sum(run.rounds) < 200
    assert run.search.best.energy <= min(visit.energy for visit in run.starts)


def test_a_policy_that_is_sure_to_stop_is_not_followed(policy):
    stopping = PlacementNetwork(hidden=16, rounds=1).eval()
    torch.nn.init.constant_(stopping.state_out.bias, 100.0)
    run = Recorder(30, starts=3)
    roll_out(run.search, stopping, run.starts, ENDLESS)
    assert run.rounds == []
