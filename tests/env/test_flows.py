import numpy as np
import pytest

from segue.env.flows import unit_flows
from tests.env.test_bounds import state_of


def between(edges, amount, count):
    """Amount between each two groups, whichever way it goes."""
    result = np.zeros((count, count))
    np.add.at(result, (edges[:, 0], edges[:, 1]), amount)
    return result + result.T


@pytest.mark.parametrize("seed", range(4))
def test_flows_are_sums_over_the_edges_that_leave_a_unit(seed):
    state = state_of(seed)
    problem, member = state.problem, state.member
    flows = unit_flows(
        member > 0, problem.edges, problem.edge_bytes, problem.edge_messages, state.edge_s, state.latency, state.pace,
        state.share,
    )  # fmt: skip
    volume, messages = (
        (member @ between(problem.edges, amount, problem.num_groups)) * (1 - member)
        for amount in (problem.edge_bytes, problem.edge_messages)
    )
    np.testing.assert_allclose(flows.transfer_s, messages @ state.latency + volume @ state.pace, rtol=1e-9)
    np.testing.assert_allclose(flows.messages, messages @ (1 - state.share), rtol=1e-9, atol=1e-12)
    nearby = (volume @ state.share) / np.maximum(volume.sum(axis=1, keepdims=True), 1e-30)
    np.testing.assert_allclose(flows.near, nearby, rtol=1e-9, atol=1e-12)
    ends = member[:, problem.edges[:, 0]] + member[:, problem.edges[:, 1]]
    np.testing.assert_allclose(flows.touching_s, (ends > 0) @ state.edge_s, rtol=1e-9)
