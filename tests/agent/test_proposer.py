import time

import numpy as np
import pytest

from segue.agent import proposer
from segue.placement.clock import SimulatedClock
from segue.placement.costs import make_costs
from segue.placement.graph import make_graph
from segue.placement.placement import Placement
from segue.placement.presets import preset


def test_warming_up_answers_a_request_that_is_coarsened_and_searched(monkeypatch) -> None:
    answers = []
    answer = proposer.answer
    monkeypatch.setattr(proposer, "answer", lambda request: answers.append(answer(request)))
    proposer.warm_up()
    (found,) = answers
    assert found.source in ("search", "policy")
    assert 100 < found.evaluations <= 200


def test_a_process_that_has_warmed_up_answers_as_this_one_does() -> None:
    graph = make_graph("chain", [(op - 1, op) for op in range(1, 12)], forward_flops=1e8, output_bytes=1e4)
    topology = preset("emulated-2")
    clock = SimulatedClock(graph, topology, make_costs(graph, topology), (1, 1))
    request = proposer.Request(clock, Placement(np.zeros(12, np.int64), 2), np.zeros(12), 0.0, 1, 60, 3)
    thinking = proposer.Proposer()
    try:
        assert not thinking.ready
        thinking.ask(request)
        found = thinking.poll(120.0)
        assert thinking.ready
    finally:
        thinking.close()
    assert found is not None
    assert found.placement == proposer.answer(request).placement


def test_a_process_says_when_it_has_warmed_up() -> None:
    thinking = proposer.Proposer()
    try:
        deadline = time.monotonic() + 120.0
        while not thinking.ready:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert thinking.poll() is None
    finally:
        thinking.close()


def test_a_process_that_dies_while_it_warms_up_is_an_error() -> None:
    thinking = proposer.Proposer()
    try:
        thinking._process.kill()
        thinking._process.wait(10.0)
        with pytest.raises(RuntimeError, match="ended unexpectedly"):
            thinking.ready  # noqa: B018
    finally:
        thinking.close()
