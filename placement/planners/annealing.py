"""`annealing` and `local-search`: searches that price one changed placement after another."""

import math

import numpy as np

from .manual import CONFIGURATIONS, single
from .moves import Moves
from .plan import Evaluator

# The hottest temperature is what a few average ops take, as a share of the step (a share of 1 is the start's step time).
HOTTEST_OPS, MOST = 4.0, 0.2
COOLING = 30.0
# Charged in the same unit for a placement that overflows memory, and again for each such share of a device's memory.
OVERFLOW_CHARGE, OVERFLOW_SHARE = 1.0, 0.1


def annealing(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """Simulated annealing (Kirkpatrick et al., Science 220, 1983) from the best manual configuration that fits.

    The temperature falls geometrically with the evaluations spent. The result is the best placement seen, so never worse
    than the start.
    """
    _evaluate_manual(evaluator, rng)
    anneal(evaluator, rng, min(MOST, HOTTEST_OPS / evaluator.clock.graph.num_ops))


def local_search(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """Random hill climbing from the best manual configuration: a move stays unless it makes the step slower."""
    _evaluate_manual(evaluator, rng)
    anneal(evaluator, rng, 0.0)


def _evaluate_manual(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """Price the manual configurations, as far as the evaluations go; the evaluator keeps the best."""
    clock = evaluator.clock
    candidates = [build(clock, rng) for build in CONFIGURATIONS.values()]
    candidates += [single(clock, device) for device in range(clock.topology.num_devices)]
    for devices in candidates[: evaluator.left]:
        evaluator(devices)


def anneal(evaluator: Evaluator, rng: np.random.Generator, hottest: float) -> None:
    """Move from placement to placement until the evaluations are spent, from the evaluator's best.

    Args:
        evaluator: has priced at least one placement.
        rng: of the moves.
        hottest: temperature at the start, as a share of the step time there; 0 for hill climbing.
    """
    moves = Moves(evaluator.clock)
    overflow, unit = evaluator.best
    unit = max(unit, 1e-12)
    memory = float(evaluator.clock.topology.memory_bytes.mean())
    current, energy = evaluator.devices, _energy(overflow, unit, unit, memory)
    total = evaluator.left
    while evaluator.left:
        spent = 1 - evaluator.left / total
        temperature = hottest * COOLING**-spent
        candidate = moves.draw(current, rng)
        proposed = _energy(*evaluator(candidate), unit, memory)
        uphill = proposed - energy
        if uphill <= 0 or (temperature and rng.random() < math.exp(-uphill / temperature)):
            current, energy = candidate, proposed


def _energy(overflow: float, step_time: float, unit: float, memory: float) -> float:
    """Step time in units of the start's, and a charge for memory that is not there."""
    charge = OVERFLOW_CHARGE * (1.0 + overflow / memory / OVERFLOW_SHARE) if overflow else 0.0
    return step_time / unit + charge
