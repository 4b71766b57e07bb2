from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.env import ScenarioSampler
from segue.env.graph_variants import joined, section, variant
from segue.env.random_graphs import _series_parallel, random_graph, wide_branches
from segue.env.random_topologies import changed, random_topology
from segue.env.scenarios import balanced_split
from segue.placement.graph import check_graph, make_graph
from segue.placement.placement import check_placement
from segue.placement.topology import check_topology


def test_scenarios_are_valid_varied_and_reproducible():
    sampler = ScenarioSampler(6)
    scenarios = [sampler(np.random.default_rng(seed)) for seed in range(120)]
    for scenario in scenarios:
        clock = scenario.clock
        check_graph(clock.graph)
        check_topology(clock.topology)
        check_placement(scenario.start, clock.graph, clock.topology)
        assert 4 <= clock.graph.num_ops <= 160
        assert scenario.start.microbatches == clock.microbatches
    assert {s.clock.topology.num_devices for s in scenarios} == {2, 3, 4, 5, 6}
    assert {s.clock.microbatches for s in scenarios} == {1, 2, 4, 8}
    again = sampler(np.random.default_rng(7))
    assert again.clock.graph.hash == scenarios[7].clock.graph.hash
    assert again.start == scenarios[7].start


def test_most_starts_fit_memory_but_not_all():
    sampler = ScenarioSampler(6)
    reports = [s.clock.step(s.start) for s in (sampler(np.random.default_rng(seed)) for seed in range(200))]
    share = np.mean([report.feasible for report in reports])
    assert 0.5 < share < 1.0


def test_the_ratio_of_transfer_to_compute_varies_widely():
    sampler = ScenarioSampler(6)
    ratios = []
    for seed in range(100):
        clock = sampler(np.random.default_rng(seed)).clock
        pace = clock.topology.seconds_per_byte
        ratios.append(clock.graph.output_bytes.mean() * pace[pace > 0].mean() / clock.costs.forward_s.mean())
    assert np.min(ratios) < 0.01
    assert np.max(ratios) > 1.0


def test_balanced_split_follows_the_speeds():
    graph = make_graph("chain", [(i, i + 1) for i in range(99)], forward_flops=1.0)
    assert np.bincount(balanced_split(graph, np.array([1.0, 3.0, 1.0]))).tolist() == [20, 60, 20]


def test_graphs_keep_to_their_size_but_for_their_last_block():
    sizes = [random_graph(np.random.default_rng(seed), 30).num_ops for seed in range(50)]
    assert np.median(sizes) < 30
    assert max(sizes) < 60


def test_variants_keep_the_structure_and_change_the_costs():
    rng = np.random.default_rng(0)
    graph = random_graph(rng, 40)
    other = variant(rng, graph)
    check_graph(other)
    assert other.hash == graph.hash
    assert not np.allclose(other.forward_flops, graph.forward_flops)


def test_captured_graphs_are_drawn_besides_random_ones():
    graph = random_graph(np.random.default_rng(0), 30)
    sampler = ScenarioSampler(4, graphs=(replace(graph, name="given"),), share=0.5)
    graphs = [sampler(np.random.default_rng(seed)).clock.graph for seed in range(60)]
    drawn = [other for other in graphs if other.name.startswith("given")]
    assert 15 < len(drawn) < 45
    assert any(other.hash == graph.hash for other in drawn)
    assert any(other.num_ops < graph.num_ops for other in drawn)
    assert any(other.name == "given+given" for other in drawn)


def test_every_objective_is_drawn():
    clocks = [ScenarioSampler(4)(np.random.default_rng(seed)).clock for seed in range(60)]
    steady = sum(clock.steady for clock in clocks)
    forward_only = sum(not clock.graph.requires_grad.any() for clock in clocks)
    assert 0 < steady < 20
    assert 0 < forward_only < 20


@given(st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_sections_and_joined_graphs_are_graphs_of_their_parts(seed):
    rng = np.random.default_rng(seed)
    one, other = (replace(random_graph(rng, 40), name=name) for name in "ab")
    part = section(rng, one)
    check_graph(part)
    assert set(part.names) <= set(one.names)
    assert part.num_ops >= min(12, one.num_ops)
    whole = joined(rng, part, other)
    check_graph(whole)
    assert whole.num_ops == part.num_ops + other.num_ops
    first, second = (
        whole.edges[whole.edges.max(axis=1) < part.num_ops],
        whole.edges[whole.edges.min(axis=1) >= part.num_ops],
    )
    assert np.array_equal(first, part.edges)
    assert np.array_equal(second - part.num_ops, other.edges)
    assert len(whole.edges) > len(first) + len(second)


def test_families_make_valid_graphs():
    for family in (wide_branches, _series_parallel):
        for seed in range(10):
            check_graph(random_graph(np.random.default_rng(seed), 80, family))


def test_a_change_makes_something_slower_and_nothing_faster():
    graph = random_graph(np.random.default_rng(0), 30)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        before = random_topology(rng, graph, 6)
        after = changed(rng, before)
        check_topology(after)
        assert (after.speed <= before.speed).all()
        assert (after.seconds_per_byte >= before.seconds_per_byte - 1e-30).all()
        assert (after.speed < before.speed).any() or (after.seconds_per_byte > before.seconds_per_byte).any()
