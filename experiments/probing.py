"""Ways to find a placement with a few measured steps, each measuring on a `Stand`, for `bench_few_steps`."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..agent.few_steps import optimise, policy_planner
from ..placement.coarsen import coarsen
from ..placement.placement import Placement, colocate
from ..placement.planners import plan
from ..placement.planners.annealing import HOTTEST_OPS, MOST, anneal
from ..placement.planners.cheap_plans import cheap_plans
from ..placement.planners.plan import Evaluator
from .mismatch import Stand

Ints = NDArray[np.int64]
Method = Callable[[Stand, int, int], None]

# Black-box optimisers of a number a group would be lost among single ops.
GROUPS = 32
# Evaluations that TPE draws at random before it has a model; the default, 10, would be half of all.
STARTUP = 5
PLANNED = 3300


def segue(stand: Stand, evaluations: int, seed: int) -> None:
    """The agent: measures, learns from the times of stages and links, and plans on what it learned."""
    list(optimise(stand.step, stand.beliefs(), None, evaluations, seed, policy_planner(PLANNED)))


def segue_busy(stand: Stand, evaluations: int, seed: int) -> None:
    """The same, but it only sees how long each device computed and sent."""

    def measure(placement: Placement) -> Any:
        return stand.step(placement, timeline=False)

    list(optimise(measure, stand.beliefs(), None, evaluations, seed, policy_planner(PLANNED)))


def believed(stand: Stand, evaluations: int, seed: int) -> None:
    """Every measured placement is a long annealing's on the simulator as it is: nothing is learned but which is best."""
    clock = stand.beliefs().clock
    plans = [plan("annealing", clock, seed=seed + run, evaluations=PLANNED).devices for run in range(evaluations)]
    for devices in sorted(plans, key=clock.step_time):
        stand.evaluate(devices)


def contiguous(stand: Stand, evaluations: int, seed: int) -> None:
    """The dynamic program on the simulator as it is, measured once."""
    del evaluations
    stand.evaluate(plan("contiguous", stand.beliefs().clock, seed=seed).devices)


def annealing(stand: Stand, evaluations: int, seed: int) -> None:
    """Simulated annealing on measured steps, from the best manual configuration."""
    plan("annealing", stand, seed=seed, evaluations=evaluations)


def annealing_from_plans(stand: Stand, evaluations: int, seed: int) -> None:
    """Simulated annealing on measured steps, from the best of the planners' answers."""
    evaluator = Evaluator(stand, evaluations)
    for devices in _plans(stand, seed):
        evaluator(devices)
    anneal(evaluator, np.random.default_rng(seed), min(MOST, HOTTEST_OPS / stand.graph.num_ops))


def random_search(stand: Stand, evaluations: int, seed: int) -> None:
    """Every group of ops anywhere."""
    rng, group_of = np.random.default_rng(seed), coarsen(stand.graph, GROUPS).group_of
    for _ in range(evaluations):
        stand.evaluate(rng.integers(0, stand.topology.num_devices, group_of.max() + 1)[group_of])


def tpe(stand: Stand, evaluations: int, seed: int) -> None:
    """Tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011): a device for each group."""
    _tpe(stand, evaluations, seed, [])


def tpe_from_plans(stand: Stand, evaluations: int, seed: int) -> None:
    """The same, with the planners' answers measured first."""
    _tpe(stand, evaluations, seed, _plans(stand, seed))


def cma_es(stand: Stand, evaluations: int, seed: int) -> None:
    """CMA-ES (Hansen and Ostermeier, 2001) over a number a group, cut into devices; from the dynamic program's answer."""
    import optuna

    count, group_of = stand.topology.num_devices, coarsen(stand.graph, GROUPS).group_of
    first = _of_groups(plan("contiguous", stand.beliefs().clock, seed=seed).devices, group_of)
    centre = {f"x{group}": (device + 0.5) / count for group, device in enumerate(first.tolist())}
    sampler: Any = optuna.samplers.CmaEsSampler(x0=centre, sigma0=0.5 / count, seed=seed)

    def objective(trial: Any) -> float:
        at = np.array([trial.suggest_float(name, 0.0, 1.0) for name in centre])
        return _energy(stand, np.minimum((at * count).astype(np.int64), count - 1)[group_of])

    _study(sampler, objective, evaluations, [centre])


def _tpe(stand: Stand, evaluations: int, seed: int, plans: list[Ints]) -> None:
    import optuna

    group_of = coarsen(stand.graph, GROUPS).group_of
    names, devices = [f"x{group}" for group in range(group_of.max() + 1)], list(range(stand.topology.num_devices))
    sampler: Any = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)

    def objective(trial: Any) -> float:
        at = np.array([trial.suggest_categorical(name, devices) for name in names])
        return _energy(stand, at[group_of])

    first = [dict(zip(names, _of_groups(found, group_of).tolist(), strict=True)) for found in plans]
    _study(sampler, objective, evaluations, first)


def _study(sampler: Any, objective: Callable[[Any], float], evaluations: int, first: list[dict[str, Any]]) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=sampler)
    for values in first:
        study.enqueue_trial(values)
    study.optimize(objective, n_trials=evaluations)


def _energy(stand: Stand, devices: Ints) -> float:
    """Measured seconds, ten times as many where memory overflows."""
    measured_s, overflow = stand.evaluate(colocate(devices, stand.graph))
    return measured_s * (10.0 if overflow else 1.0)


def _of_groups(devices: Ints, group_of: Ints) -> Ints:
    """The device that most ops of each group are on."""
    return np.array([np.bincount(devices[group_of == group]).argmax() for group in range(group_of.max() + 1)])


def _plans(stand: Stand, seed: int, most: int = 5) -> list[Ints]:
    """The cheap planners' answers on the simulator as it is, the best of them, without repetitions."""
    found = {plan.devices.tobytes(): plan.devices for plan in cheap_plans(stand.beliefs().clock, seed, 600)}
    return list(found.values())[:most]


METHODS: dict[str, Method] = {
    "segue": segue,
    "segue, busy seconds only": segue_busy,
    "long annealing on the beliefs": believed,
    "dynamic program on the beliefs": contiguous,
    "annealing": annealing,
    "annealing from plans": annealing_from_plans,
    "TPE": tpe,
    "TPE from plans": tpe_from_plans,
    "CMA-ES from the dynamic program": cma_es,
    "random": random_search,
}
"""Name -> method, as `method(stand, evaluations, seed)`."""
