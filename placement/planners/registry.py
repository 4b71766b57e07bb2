"""The planners by name."""

import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import numpy as np

from ..clock import SimulatedClock
from ..errors import SegueError
from ..topology import Topology
from .accelerate_map import accelerate_balanced, accelerate_sequential
from .annealing import annealing, local_search
from .baechi import m_etf, m_sct
from .contiguous import contiguous
from .cp_sat import cp_sat
from .from_file import from_file
from .heft import heft
from .interleaved import interleaved
from .manual import CONFIGURATIONS, random_devices, single
from .metis import metis
from .plan import Devices, Evaluator, Plan

Planner = Callable[[Evaluator, np.random.Generator], None]
SINGLE = "single:"
FILE = "file:"


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
    "accelerate-balanced": accelerate_balanced,
    "accelerate-sequential": accelerate_sequential,
    "contiguous": contiguous,
    "interleaved": interleaved,
    "metis": metis,
    "heft": heft,
    "m-etf": m_etf,
    "m-sct": m_sct,
    "annealing": annealing,
    "local-search": local_search,
    "cp-sat": cp_sat,
}
"""Planners besides `single:<device>` and `file:<path>`."""

TIMED = ("cp-sat",)
"""Planners that keep to a budget of seconds by themselves."""

LIBRARIES: dict[str, str] = {
    "accelerate-balanced": "accelerate",
    "accelerate-sequential": "accelerate",
    "metis": "pymetis",
    "cp-sat": "ortools",
}
"""Libraries of the extra `planners` that planners need."""


def plan(
    name: str, clock: SimulatedClock, *, seed: int = 0, evaluations: int = 1000, budget_s: float | None = None
) -> Plan:
    """Place the clock's graph on its topology.

    Args:
        name: a key of `PLANNERS`, `single:<device>`, or `file:<path>` of a placement or `device_map`.
        clock: what prices placements.
        seed: of every random choice; the same seed gives the same plan.
        evaluations: how many placements a search may price.
        budget_s: wall-clock seconds for the planners of `TIMED`; with it the same seed need not give the same plan.

    Returns:
        The best placement found: what fits memory before what does not, then the shortest step.

    Raises:
        SegueError: if there is no planner or device of that name, its library is missing, the file is none for this graph and
            these devices, or `evaluations` < 1.
    """
    planner = _find(name, clock.topology)
    start = time.perf_counter()
    evaluator = Evaluator(clock, evaluations, budget_s)
    planner(evaluator, np.random.default_rng(seed))
    overflow, value = evaluator.best
    return Plan(
        planner=name,
        devices=evaluator.devices,
        value_s=value,
        overflow_bytes=overflow,
        evaluations=evaluator.used,
        planning_s=time.perf_counter() - start,
        bound=evaluator.bound,
    )


def expand(names: Sequence[str], topology: Topology) -> list[str]:
    """Planner names with `single` written out for every device, and `manual` and `all` for what they hold, each once.

    `all` leaves out planners whose library is not installed.

    Raises:
        SegueError: naming the first unknown planner or device, or unreadable file.
    """
    singles = [f"{SINGLE}{device.name}" for device in topology.devices]
    manual = [*singles, *CONFIGURATIONS]
    others = [name for name in PLANNERS if name not in manual and _is_installed(name)]
    sets = {"single": singles, "manual": manual, "all": [*manual, *others]}
    expanded = list(dict.fromkeys(name for given in names for name in sets.get(given, [given])))
    for name in expanded:
        _find(name, topology)
    return expanded


def _is_installed(name: str) -> bool:
    return name not in LIBRARIES or find_spec(LIBRARIES[name]) is not None


def _find(name: str, topology: Topology) -> Planner:
    if name.startswith(FILE):
        return from_file(name.removeprefix(FILE))
    if name.startswith(SINGLE):
        device = name.removeprefix(SINGLE)
        if device not in topology.index:
            raise SegueError(f"planner {name!r}: unknown device {device!r}; known: {', '.join(topology.index)}")
        return _once(lambda clock, rng: single(clock, clock.topology.index[device]))
    if name not in PLANNERS:
        known = ", ".join((f"{SINGLE}<device>", f"{FILE}<path>", *sorted(PLANNERS)))
        raise SegueError(f"planner {name!r}: no such planner; known: {known}")
    return PLANNERS[name]
