"""`cp-sat`: the placement whose largest device load is least, by constraint programming, with a proven lower bound."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..clock import SimulatedClock
from ..errors import SegueError
from ..workload_clock import WorkloadClock
from .contiguous import contiguous
from .load_model import LoadModel, cp_model
from .load_problem import LoadProblem, critical_path, is_exact, load_problem, relaxation
from .plan import MEMORY_SHARES, Devices, Evaluator

# Deterministic seconds (CP-SAT's count of its own work, near wall seconds on one core) for each of the planner's problems.
BUDGET_S = 5.0
# Wall seconds allowed for each deterministic one: a guard that only a machine much slower than usual reaches.
SLOWEST = 60.0
# Share of a budget of wall seconds for the bound on the compute alone, and for each try while nothing fits memory.
BOUND_SHARE, TRY_SHARE = 0.25, 0.5
# How far a bound on the compute alone may stay behind its optimum; the last digits take longest.
BOUND_GAP = 1e-3
# What rounding seconds to whole numbers may take off a bound.
ROUNDING = 1e-5
# Decisions above which nothing is found in that time: which device an op is on, and which it sends to.
MOST_DECISIONS = 20_000


@dataclass(frozen=True, eq=False)
class Exact:
    """What the solver found.

    Attributes:
        devices: device of every op, `int64[n]`; None if the budget ended before any placement was found.
        value: its largest load in seconds; infinite without one.
        bound: seconds that no placement is below, proven.
        proven: whether the search ended by itself with `bound` at `value`, but for `gap` and `ROUNDING`.
    """

    devices: Devices | None
    value: float
    bound: float
    proven: bool


def cp_sat(evaluator: Evaluator, rng: np.random.Generator) -> None:
    """Exact max-load by OR-Tools CP-SAT (Perron and Furnon), with memory, colocation, unequal devices and links.

    The search begins at `contiguous`'s answer. For a max-load clock the solver's problem is the clock's own, and
    `evaluator.bound` what was proven of it. For a clock that schedules a step, the problem is the load in a pipeline that is
    never dry (`load_problem`), every placement found on the way is priced, and the bound is that of the compute alone
    (`relaxation`) or the critical path, whichever is longer. As that clock sees memory more closely than the problem, what
    overflows is solved again with less of it.

    Every problem may take `BUDGET_S`; if the evaluator has a budget of seconds, all of them together take that instead.

    Raises:
        SegueError: if the graph is too large (`can_manage`), or OR-Tools is not installed.
    """
    clock, seed = evaluator.clock, int(rng.integers(2**31 - 1))
    check_manageable(clock)
    problem, exact = load_problem(clock), is_exact(clock)
    contiguous(evaluator, rng)
    if not exact:
        bound = _compute_bound(relaxation(clock), seed, _share(evaluator.seconds_left, BOUND_SHARE))
        evaluator.bound = max(critical_path(clock), bound)
    start = evaluator.devices
    for share in (1.0, np.inf) if exact else MEMORY_SHARES:
        if not evaluator.left or evaluator.seconds_left == 0.0:
            return
        part = 1 - BOUND_SHARE if exact else 1.0 if evaluator.best[0] == 0.0 else TRY_SHARE
        found: list[Devices] = []
        result = solve_max_load(
            problem.with_share(share), seed=seed, hint=start, on_solution=found.append,
            wall_s=_share(evaluator.seconds_left, part),
        )  # fmt: skip
        fits = _price(evaluator, found)
        if exact and share == 1.0 and np.isfinite(result.bound):
            bound = result.bound
            if not result.proven:
                bound = max(bound, _compute_bound(problem, seed, evaluator.seconds_left))
            evaluator.bound = min(bound, evaluator.best[1]) if fits else bound
        if fits:
            return


def can_manage(clock: SimulatedClock) -> bool:
    """Whether `cp_sat` takes the clock: its graph is not too large, and its objective has a model."""
    latency = isinstance(clock, WorkloadClock) and clock.objective != "max-load"
    return not latency and _decisions(clock) <= MOST_DECISIONS


def check_manageable(clock: SimulatedClock) -> None:
    """Raise `SegueError` with the reason unless `can_manage`."""
    if can_manage(clock):
        return
    if _decisions(clock) <= MOST_DECISIONS:
        raise SegueError("planner 'cp-sat': has no model of a workload's latency; use --objective max-load")
    raise SegueError(
        f"planner 'cp-sat': {clock.graph.num_ops} ops on {clock.topology.num_devices} devices are too many: at most "
        f"{MOST_DECISIONS} decisions, got {_decisions(clock)}"
    )


def _decisions(clock: SimulatedClock) -> int:
    """Ops times devices, and times devices again where it matters who sends to whom."""
    each = clock.graph.num_ops * clock.topology.num_devices
    return each if isinstance(clock, WorkloadClock) else each * clock.topology.num_devices


def _share(seconds: float | None, share: float) -> float | None:
    """A share of the seconds that are left, if they are limited."""
    return None if seconds is None else share * seconds


def _compute_bound(problem: LoadProblem, seed: int, wall_s: float | None) -> float:
    """A bound without transfers, which is easier to prove; 0 if nothing fits."""
    alone = replace(problem, pair_s=None, host_s=None)
    bound = solve_max_load(alone, seed=seed, gap=BOUND_GAP, wall_s=wall_s).bound
    return bound if np.isfinite(bound) else 0.0


def _price(evaluator: Evaluator, found: list[Devices]) -> bool:
    """Price what the solver found, its last and best first; whether any of it fits."""
    overflows = [evaluator(devices)[0] for devices in found[: -evaluator.left - 1 : -1]]
    return 0.0 in overflows


def solve_max_load(
    problem: LoadProblem,
    *,
    budget_s: float = BUDGET_S,
    seed: int = 0,
    gap: float = 1e-6,
    hint: Devices | None = None,
    on_solution: Callable[[Devices], None] | None = None,
    wall_s: float | None = None,
) -> Exact:
    """Place a problem's ops so that the largest load is least.

    One worker under a limit of deterministic time: the same arguments give the same answer, unless `wall_s` is given.

    Args:
        problem: what is placed.
        budget_s: deterministic seconds.
        seed: of the search.
        gap: share of the value by which the bound may fall short of it when the search ends by itself.
        hint: a placement to begin at.
        on_solution: called with each placement that is better than the ones before it.
        wall_s: wall seconds to take instead of the deterministic ones.

    Raises:
        SegueError: if OR-Tools is not installed, or no device can run a colocation group.
    """
    begin, cp = time.perf_counter(), cp_model()
    model = LoadModel(problem)
    if hint is not None:
        model.hint(hint)

    class Report(cp.CpSolverSolutionCallback):
        """Hands on every solution."""

        def on_solution_callback(self) -> None:
            if on_solution is not None:
                on_solution(model.devices(self))

    solver = cp.CpSolver()
    solver.parameters.num_workers = 1
    # Several strategies in turn: one alone finds much worse placements of large graphs.
    solver.parameters.interleave_search = True
    solver.parameters.random_seed = seed
    solver.parameters.relative_gap_limit = gap
    if wall_s is None:
        solver.parameters.max_deterministic_time = budget_s
        solver.parameters.max_time_in_seconds = SLOWEST * budget_s
    else:
        solver.parameters.max_time_in_seconds = max(0.0, wall_s - (time.perf_counter() - begin))
    status = _interruptible(solver, model.model, Report())
    if status == cp.INFEASIBLE:
        return Exact(None, float("inf"), float("inf"), True)
    bound = solver.best_objective_bound * model.unit_s
    if status not in (cp.OPTIMAL, cp.FEASIBLE):
        return Exact(None, float("inf"), bound, False)
    devices = model.devices(solver)
    value = float(problem.loads(devices).max())
    proven = status == cp.OPTIMAL and bound >= value * (1 - gap - ROUNDING)
    return Exact(devices, value, min(bound, value), proven)


def _interruptible(solver: Any, model: Any, report: Any) -> Any:
    """The status of a search that Ctrl-C ends, as `KeyboardInterrupt`.

    Left to itself the solver takes the signal over, and afterwards leaves it to the system, which ends the process.
    """
    solver.parameters.catch_sigint_signal = False
    with ThreadPoolExecutor(1) as thread:
        searching = thread.submit(solver.solve, model, report)
        try:
            return searching.result()
        except KeyboardInterrupt:
            solver.stop_search()
            raise
