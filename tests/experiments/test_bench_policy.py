import numpy as np
import pytest
import torch

from segue.agent.network import PlacementNetwork
from segue.agent.pretrained import save_policy
from segue.env.random_graphs import random_graph
from segue.experiments.bench_policy import (
    against,
    equal_evaluations,
    equal_table,
    hardware,
    plot_equal,
    spread,
    strongest,
    zero_shot,
    zero_shot_table,
)
from segue.experiments.policy_cases import hardware_cases, held_out_cases
from segue.experiments.policy_methods import ANNEALING, GIVEN, PLANNED, by_place, by_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("policy") / "small.safetensors"
    network = PlacementNetwork(16, 1).eval()
    save_policy(network, file)
    return network, str(file)


@pytest.fixture(scope="module")
def cases():
    rng = np.random.default_rng(0)
    return held_out_cases({"chains": [random_graph(rng, 20), random_graph(rng, 25)]}, 4)


def test_cases_are_the_same_for_a_seed_and_of_every_family(cases):
    rng = np.random.default_rng(0)
    again = held_out_cases({"chains": [random_graph(rng, 20), random_graph(rng, 25)]}, 4)
    assert [case.name for case in cases] == [case.name for case in again]
    assert all(one.start == other.start for one, other in zip(cases, again, strict=True))
    assert {case.family for case in cases} == {"chains", "wide branches"}


def test_the_strongest_annealing_is_the_one_to_beat(cases, policy, tmp_path):
    results = equal_evaluations(cases, {"search, policy": by_policy(policy[0])}, (20, 40), 0)
    columns = results[40]
    assert strongest(columns) in ANNEALING
    table = equal_table(results)
    assert table.count("(strongest)") == 2
    assert table.count("search, policy") == 2
    plot_equal(results, ["search, policy"], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_the_spread_over_seeds_and_runs_is_told(cases, policy):
    methods = {"one": by_policy(policy[0]), "other": by_policy(policy[0])}
    runs = [equal_evaluations(cases[:2], methods, (10,), seed) for seed in range(2)]
    lines = spread(runs, list(methods), (10,)).splitlines()
    assert len(lines) == 2 + 3
    one, other, both = (line.split(" | ")[2:6] for line in lines[2:])
    assert one == other
    assert both[2] == one[2]
    assert both[3] == "0.000"
    rows = [line.split(" | ") for line in against(runs, "one", (10,)).splitlines()[2:]]
    assert [row[1] for row in rows] == list(GIVEN)
    assert rows[-1][2] == one[2]
    # The more there are, the stronger is the strongest; all of these cases are solved.
    assert [float(row[2]) for row in rows] == sorted(float(row[2]) for row in rows)


def test_annealing_from_the_cheap_plans_and_segue_place_are_no_worse_than_the_plans(cases, policy):
    for case in cases:
        alone = PLANNED["cheap plans alone"](case.clock, case.start, 60, 0)
        assert alone <= case.clock.evaluate(case.start.devices)[0]
        for method in (*PLANNED.values(), by_place(policy[0])):
            assert method(case.clock, case.start, 60, 0) <= alone
            assert np.isfinite(method(case.clock, case.start, 1, 0))


def test_zero_shot_is_never_worse_than_the_best_manual_configuration(cases, policy, monkeypatch):
    monkeypatch.setattr("segue.experiments.bench_policy.LONG", 200)
    rows = zero_shot(cases, policy[1], 0)
    assert all(row["best"] <= row["rollout"] <= row["plan"] <= row["manual"] for row in rows)
    assert len(zero_shot_table(cases, rows).splitlines()) == len(cases) + 3


def test_hardware_has_every_number_of_devices(policy):
    cases = hardware_cases(random_graph(np.random.default_rng(1), 15))
    assert {2, 3, 4, 8, 16, 32} <= {case.clock.topology.num_devices for case in cases}
    table = hardware(cases[:2], policy[1], 20, 0)
    ratios = [float(line.split("|")[3]) for line in table.splitlines()[2:]]
    assert max(ratios) <= 1.0
