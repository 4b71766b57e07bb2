from typing import NamedTuple

import numpy as np
import pytest

from segue.placement.clock import SimulatedClock, price, price_many
from segue.placement.coarsen import coarsen
from segue.placement.costs import make_costs
from segue.placement.graph import Graph, make_graph
from segue.placement.max_load import MaxLoadClock
from segue.placement.plain_arrays import plain
from segue.placement.planners.unit_annealing import _anneal, anneal_units
from segue.placement.presets import preset


class Fields(NamedTuple):
    matrix: np.ndarray
    number: int


def test_arrays_are_copied_to_contiguous_writable_ones():
    matrix = np.arange(6.0).reshape(2, 3).T
    matrix.setflags(write=False)
    made = plain(Fields(matrix, 3))
    assert made.number == 3
    assert made.matrix.flags.c_contiguous
    assert made.matrix.flags.writeable
    np.testing.assert_array_equal(made.matrix, matrix)
    assert plain(made).matrix is made.matrix


@pytest.mark.parametrize("kind", [SimulatedClock, MaxLoadClock])
def test_a_search_is_compiled_once_wherever_its_arrays_come_from(kind, tmp_path):
    topology, graph = preset("emulated-2"), make_graph("chain", [(op, op + 1) for op in range(7)], forward_flops=1e6)
    graph.save(tmp_path / "graph.json")
    loaded = Graph.load(tmp_path / "graph.json")

    def use(graph, devices, spans):
        clock = kind(graph, topology, make_costs(graph, topology), (1, 1))
        clock.evaluate(devices[0])
        clock.evaluate_many(devices)
        anneal_units(clock, coarsen(graph, 4), devices[0], evaluations=3, spans=spans)
        return [len(function.signatures) for function in (price, price_many, _anneal)]

    compiled = use(graph, np.zeros((2, 8), np.int64), 0.5)
    graph.output_bytes.setflags(write=False)
    for other in (graph, loaded):
        assert use(other, np.zeros((8, 4), np.int64).T[::2], 0) == compiled
