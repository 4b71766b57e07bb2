"""How good a policy is on instances it was not trained on, beside searches with as many evaluations.

`python -m segue.agent.evaluate --instances 40` prints the table of the model card.
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ..env import Scenario, ScenarioSampler
from ..placement.clock import SimulatedClock
from ..placement.coarsen import coarsen
from ..placement.planners import expand, plan
from .network import PlacementNetwork
from .pretrained import load_policy
from .propose import propose
from .search import SearchSettings

Floats = NDArray[np.float64]
HELD_OUT = 9_000_000
"""Scenarios from this seed on are used nowhere else."""


def evaluate(
    policy: PlacementNetwork | None = None,
    instances: int = 20,
    evaluations: int = 400,
    sampler: Callable[[np.random.Generator], Scenario] | None = None,
    first_seed: int = HELD_OUT,
) -> dict[str, Floats]:
    """Step times that each method reaches on held-out scenarios.

    Args:
        policy: what is judged; by default the shipped one.
        instances: scenarios.
        evaluations: placements that each method may ask the clock for.
        sampler: draws the scenarios, whose clocks must be simulated; by default as in training.
        first_seed: of the first scenario.

    Returns:
        Method -> step times in seconds, `float64[instances]`; infinite where nothing that fits memory was found.
    """
    trained = policy or load_policy()
    torch.manual_seed(0)
    untrained = PlacementNetwork(trained.hidden, trained.rounds).eval().requires_grad_(False)
    uniform = SearchSettings(uniform=1.0, rollout_share=0.0)
    sampler = sampler or ScenarioSampler(6)
    columns: dict[str, list[float]] = {}
    for index in tqdm(range(instances), unit="instance"):
        scenario = sampler(np.random.default_rng(first_seed + index))
        clock = scenario.clock
        assert isinstance(clock, SimulatedClock)

        def search(network: PlacementNetwork, clock=clock, start=scenario.start, **options) -> float:
            result = propose(clock, start, policy=network, evaluations=evaluations, **options)
            return result.predicted_step_time_s if result.feasible else np.inf

        names = expand(("manual",), clock.topology)
        manual = {name: plan(name, clock).devices for name in names}
        planned = plan("annealing", clock, evaluations=evaluations)
        row = {
            "start": clock.evaluate(scenario.start.devices)[0],
            "annealing, single groups": annealing(clock, scenario.start.devices, evaluations),
            "search, uniform moves": search(untrained, settings=uniform),
            "search, untrained policy": search(untrained),
            "search, policy": search(trained),
            "planner annealing from manual": planned.value_s if planned.feasible else np.inf,
            "search, policy from manual": search(trained, starts=manual),
            "annealing, 12 times as long": annealing(clock, scenario.start.devices, 12 * evaluations),
        }
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in columns.items()}


def annealing(clock: SimulatedClock, start: NDArray[np.int64], evaluations: int, seed: int = 0) -> float:
    """Plain simulated annealing over single groups: the best step time that fits memory, else infinite.

    Moves a random group to a random device. As in `propose`, placements that repeat are not asked for again, and the
    temperature falls geometrically (from 10 % to 0.1 % of the step time, the best of three schedules that were tried).
    """
    rng = np.random.default_rng(seed)
    group_of = coarsen(clock.graph, 64).group_of
    known: dict[bytes, tuple[float, float]] = {}

    def energy(devices: NDArray[np.int64]) -> float:
        key = devices.tobytes()
        if key not in known:
            known[key] = clock.evaluate(devices)
        step_time, overflow = known[key]
        worst = min(1.0, overflow / float(clock.topology.memory_bytes.max()))
        return float(np.log(step_time)) + (0.5 * (1.0 + worst) if overflow else 0.0)

    current, now, idle = start, energy(start), 0
    while len(known) < evaluations and idle < 20 * evaluations:
        idle += 1
        temperature = 0.001 * 100 ** (1 - len(known) / evaluations)
        devices = np.where(
            group_of == rng.integers(group_of.max() + 1), rng.integers(clock.topology.num_devices), current
        )
        new = energy(devices)
        if new - now < temperature * rng.exponential():
            current, now = devices, new
    return min((step_time for step_time, overflow in known.values() if overflow == 0), default=np.inf)


def table(columns: dict[str, Floats]) -> str:
    """Geometric means of step times relative to the start's and to plain annealing's, over instances all methods solve."""
    solved = np.all([np.isfinite(values) for values in columns.values()], axis=0)
    start, peer = columns["start"][solved], columns["annealing, single groups"][solved]
    lines = ["| method | / start | / annealing | better, worse than annealing | found none |", "|---|---|---|---|---|"]
    for name, values in columns.items():
        step = values[solved]
        ratios = [np.exp(np.log(step / other).mean()) for other in (start, peer)]
        better, worse = int((step < 0.999 * peer).sum()), int((step > 1.001 * peer).sum())
        missing = int(np.isinf(values).sum())
        lines.append(f"| {name} | {ratios[0]:.3f} | {ratios[1]:.3f} | {better}, {worse} | {missing} |")
    return "\n".join(lines)


def main() -> None:
    """Evaluate a policy from the command line."""
    parser = argparse.ArgumentParser(prog="python -m segue.agent.evaluate", description=__doc__)
    parser.add_argument("--policy", help="weights (.safetensors); by default the shipped ones")
    parser.add_argument("--instances", type=int, default=20)
    parser.add_argument("--evaluations", type=int, default=400)
    options = parser.parse_args()
    policy = load_policy(options.policy) if options.policy else None
    print(table(evaluate(policy, options.instances, options.evaluations)))


if __name__ == "__main__":
    main()
