"""The planners by name."""

import time
from collections.abc import Callable, Sequence

import numpy as np

from ..clock import SimulatedClock
from ..errors import SegueError
from ..topology import Topology
from .annealing import annealing, local_search
from .contiguous import contiguous
from .heft import heft
from .manual import CONFIGURATIONS, random_devices, single
from .plan import Devices, Evaluator, Plan

Planner = Callable[[Evaluator, np.random.Generator], None]
SINGLE = "single:"


def _once(build: Callable[[SimulatedClock, np.random.Generator], Devices]) -> Planner:
    """A planner that prices the one placement that `build` returns."""

    def planner(evaluator: Evaluator, rng: np.random.Generator) -> None:
        evaluator(build(evaluator.clock, rng))

    return planner


MANUAL: tuple[str, ...] = ("single", *CONFIGURATIONS)
"""Manual configurations; `single` stands for one `single:<device>` each (`expand`)."""

PLANNERS: dict[str, Planner] = {
    **{name: _once(build) for name, build in CONFIGURATIONS.items()},
    "random": _once(random_devices),
    "contiguous": contiguous,
    "heft": heft,
    "annealing": annealing,
    "local-search": local_search,
}
"""Planners besides `single:<device>`."""


def plan(name: str, clock: SimulatedClock, *, seed: int = 0, evaluations: int = 1000) -> Plan:
    """Place the clock's graph on its topology.

    Args:
        name: a key of `PLANNERS`, or `single:<device>`.
        clock: what prices placements.
        seed: of every random choice; the same seed gives the same plan.
        evaluations: how many placements a search may price.

    Returns:
        The best placement found: what fits memory before what does not, then the shortest step.

    Raises:
        SegueError: if there is no planner or device of that name, or `evaluations` < 1.
    """
    planner = _find(name, clock.topology)
    start = time.perf_counter()
    evaluator = Evaluator(clock, evaluations)
    planner(evaluator, np.random.default_rng(seed))
    overflow, value = evaluator.best
    return Plan(
        planner=name,
        devices=evaluator.devices,
        value_s=value,
        overflow_bytes=overflow,
        evaluations=evaluator.used,
        planning_s=time.perf_counter() - start,
    )


def expand(names: Sequence[str], topology: Topology) -> list[str]:
    """Planner names with `single` written out for every device, and `manual` and `all` for what they hold, each once.

    Raises:
        SegueError: naming the first unknown planner or device.
    """
    singles = [f"{SINGLE}{device.name}" for device in topology.devices]
    manual = [*singles, *CONFIGURATIONS]
    sets = {"single": singles, "manual": manual, "all": [*manual, *(n for n in PLANNERS if n not in manual)]}
    expanded = list(dict.fromkeys(name for given in names for name in sets.get(given, [given])))
    for name in expanded:
        _find(name, topology)
    return expanded


def _find(name: str, topology: Topology) -> Planner:
    if name.startswith(SINGLE):
        device = name.removeprefix(SINGLE)
        if device not in topology.index:
            raise SegueError(f"planner {name!r}: unknown device {device!r}; known: {', '.join(topology.index)}")
        return _once(lambda clock, rng: single(clock, clock.topology.index[device]))
    if name not in PLANNERS:
        raise SegueError(f"planner {name!r}: no such planner; known: {SINGLE}<device>, {', '.join(sorted(PLANNERS))}")
    return PLANNERS[name]
