import numpy as np

from segue.env import ScenarioSampler
from segue.env.scenarios import balanced_split, random_graph
from segue.placement.graph import check_graph, make_graph
from segue.placement.placement import check_placement
from segue.placement.topology import check_topology


def test_scenarios_are_valid_varied_and_reproducible():
    sampler = ScenarioSampler(6)
    scenarios = [sampler(np.random.default_rng(seed)) for seed in range(60)]
    for scenario in scenarios:
        clock = scenario.clock
        check_graph(clock.graph)
        check_topology(clock.topology)
        check_placement(scenario.start, clock.graph, clock.topology)
        assert 8 <= clock.graph.num_ops <= 120
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
