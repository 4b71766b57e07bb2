import argparse

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from segue.experiments.bench_truth import draw_placements, scatter, study, study_table
from segue.placement.clock import SimulatedClock
from segue.placement.costs import make_costs
from segue.placement.graph import make_graph
from segue.placement.placement import colocate
from segue.placement.presets import preset


def clock() -> SimulatedClock:
    rng = np.random.default_rng(0)
    edges = [(op - 1, op) for op in range(1, 60)]
    colocation = np.full(60, -1)
    colocation[[3, 40]] = 0
    graph = make_graph("chain", edges, 60, batch_size=4, forward_flops=rng.uniform(1e7, 1e8, 60), colocation=colocation)
    topology = preset("emulated-4")
    return SimulatedClock(graph, topology, make_costs(graph, topology), (4, 4))


def test_the_placements_are_all_different_keep_ops_together_and_come_again_with_the_seed() -> None:
    problem = clock()
    drawn = draw_placements(problem, 30, 1)
    assert len({where.tobytes() for where in drawn}) == len(drawn) == 30
    for where in drawn:
        np.testing.assert_array_equal(where, colocate(where, problem.graph))
    for where, again in zip(drawn, draw_placements(problem, 30, 1), strict=True):
        np.testing.assert_array_equal(where, again)


def test_the_table_and_the_picture_show_each_study(tmp_path) -> None:
    row = {
        "model": "m",
        "topology": "t",
        "clock": "emulated",
        "predicted_s": [1.1, 2.2, 4.0],
        "measured_s": [1.0, 2.0, 4.0],
    }
    table = study_table([row, {**row, "clock": "measured"}])
    assert "10.0%" in table
    assert "1.000" in table
    scatter([row, {**row, "clock": "measured"}], str(tmp_path / "scatter.png"))
    assert (tmp_path / "scatter.png").stat().st_size > 1000


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_op_costs_measured_on_a_gpu_rank_placements_as_the_gpu_does() -> None:
    options = argparse.Namespace(microbatches=4, seed=0, rounds=3, steps=2, placements=30)
    result = study("inception", "this-machine", options)
    assert result["clock"] == "measured"
    assert spearmanr(result["predicted_s"], result["measured_s"]).statistic >= 0.9
