import numpy as np
import pytest
import torch

from segue.agent.network import PlacementNetwork
from segue.agent.scoring import score_states
from segue.env import EnvConfig, ScenarioSampler
from segue.env.observation import step_features
from segue.env.problem import make_problem
from segue.env.state import make_state
from segue.placement.placement import Placement


@pytest.mark.parametrize("seed", range(4))
def test_states_scored_together_score_as_they_do_alone(seed):
    torch.manual_seed(seed)
    network, rng = PlacementNetwork(hidden=16, rounds=2).eval(), np.random.default_rng(seed)
    torch.nn.init.normal_(network.move_out.weight)
    case = ScenarioSampler(4, 30)(rng)
    clock, devices = case.clock, case.clock.topology.num_devices
    problem = make_problem(clock, EnvConfig(24, devices))
    # One with few runs of groups and others with many: they differ in their number of units.
    maps = [np.zeros(clock.graph.num_ops, np.int64), *rng.integers(0, devices, (3, clock.graph.num_ops))]
    states = [make_state(problem, row, clock.step(Placement(row, clock.microbatches))) for row in maps]
    assert len({len(state.member) for state in states}) > 1
    steps = [step_features(state, 1.0, 0.5, 0.1, 0.2) for state in states]
    for state, step, scores in zip(states, steps, score_states(network, states, steps), strict=True):
        (alone,) = score_states(network, [state], [step])
        assert scores.logits.shape == (1, len(state.member), devices)
        for one, other in zip(scores, alone, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
