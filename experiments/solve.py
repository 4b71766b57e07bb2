"""One planner, or the agent, on one clock: within a number of evaluations, or of seconds."""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..placement.clock import SimulatedClock
from ..placement.errors import SegueError
from ..placement.placement import Placement
from ..placement.planners import TIMED, Plan, plan
from ..placement.planners.workload_search import search
from ..placement.workload_clock import WorkloadClock
from .planning_options import EVALUATIONS

AGENT = "agent"
Ints = NDArray[np.int64]

# A search is first tried with few evaluations, to see how long they take; then again with all that fit the budget.
FIRST, LONGER, MOST, SHARE = 100, 10, 30, 0.85
# Placements of a workload that the agent prices before annealing goes on, which prices thousands in the time of one of them.
AHEAD = 50


def solve(
    name: str,
    clock: SimulatedClock,
    *,
    seed: int = 0,
    evaluations: int | None = None,
    budget_s: float | None = None,
    policy: str = "",
) -> Plan:
    """The plan of a planner, or of the agent, for a clock.

    Args:
        name: a planner (`segue.placement.planners.plan`), or `agent`.
        clock: what prices placements.
        seed: of every random choice. The same seed and evaluations give the same plan; a budget in seconds does not
            promise that, since machines differ.
        evaluations: placements that a search may price; 1000 if there is no budget either.
        budget_s: wall-clock seconds that a search may take.
        policy: the agent's weights; the shipped ones if empty.

    Raises:
        SegueError: if there is no such planner, it cannot handle this clock, or a limit is out of range.
    """
    if budget_s is not None and not budget_s > 0:
        raise SegueError(f"budget must be > 0 seconds, got {budget_s:g}")
    if isinstance(clock, WorkloadClock) and name == "annealing":
        return _workload_annealing(clock, seed, evaluations, budget_s)
    if isinstance(clock, WorkloadClock) and name == AGENT:
        return _workload_agent(clock, seed, evaluations, budget_s, policy)
    if name in TIMED:
        count = EVALUATIONS if evaluations is None else evaluations
        return plan(name, clock, seed=seed, evaluations=count, budget_s=budget_s)

    def run(count: int) -> Plan:
        if name == AGENT:
            return _agent(clock, seed, count, policy)
        return plan(name, clock, seed=seed, evaluations=count)

    if budget_s is None:
        return run(EVALUATIONS if evaluations is None else evaluations)
    return _within(run, budget_s, evaluations)


def _within(run: Callable[[int], Plan], budget_s: float, evaluations: int | None) -> Plan:
    """Run a search again with more evaluations until the budget is spent; the best of its plans."""
    begin = time.perf_counter()
    asked = FIRST if evaluations is None else min(FIRST, evaluations)
    best = last = run(asked)
    used, before = last.evaluations, begin
    # What used fewer than it might have is no search, or has nothing left to try.
    while last.evaluations >= asked:
        now = time.perf_counter()
        affordable = int(asked * SHARE * (begin + budget_s - now) / max(1e-9, now - before))
        more = affordable if affordable <= MOST * asked else LONGER * asked
        more = more if evaluations is None else min(more, evaluations)
        if more <= asked:
            break
        asked, before = more, now
        last = run(asked)
        used += last.evaluations
        if (last.overflow_bytes, last.value_s) < (best.overflow_bytes, best.value_s):
            best = last
    return replace(best, evaluations=used, planning_s=time.perf_counter() - begin)


def _agent(clock: SimulatedClock, seed: int, evaluations: int, policy: str) -> Plan:
    """The agent's answer; it starts from `equal-layers` and the cheap planners', which count as evaluations."""
    from ..agent.proposer import Request, answer

    begin = time.perf_counter()
    proposal = answer(
        Request(
            clock=clock,
            start=Placement(plan("equal-layers", clock, seed=seed).devices, clock.microbatches),
            move_seconds=np.zeros(clock.graph.num_ops),
            pause_s=0.0,
            horizon_steps=1,
            evaluations=evaluations,
            seed=seed,
            policy_path=policy,
        )
    )
    value, overflow = clock.evaluate(proposal.placement.devices)
    seconds = time.perf_counter() - begin
    return Plan(AGENT, proposal.placement.devices, value, overflow, proposal.evaluations, seconds)


def _workload_agent(
    clock: WorkloadClock, seed: int, evaluations: int | None, budget_s: float | None, policy: str
) -> Plan:
    """The agent's answer after few evaluations, then the annealing for workloads from there."""
    begin = time.perf_counter()
    if budget_s is None and evaluations is None:
        evaluations = EVALUATIONS
    asked = AHEAD if evaluations is None else min(AHEAD, evaluations)
    first = _agent(clock, seed, asked, policy)
    left = None if evaluations is None else evaluations - first.evaluations
    left_s = None if budget_s is None else begin + budget_s - time.perf_counter()
    if (left is not None and left < 1) or (left_s is not None and left_s <= 0):
        return first
    rest = _workload_annealing(clock, seed, left, left_s, clock.node_devices(first.devices))
    used, seconds = first.evaluations + rest.evaluations, time.perf_counter() - begin
    return replace(rest, planner=AGENT, evaluations=used, planning_s=seconds)


def _workload_annealing(
    clock: WorkloadClock, seed: int, evaluations: int | None, budget_s: float | None, start: Ints | None = None
) -> Plan:
    """The annealing for workloads, which prices changes instead of whole placements."""
    if budget_s is None and evaluations is None:
        evaluations = EVALUATIONS
    found = search(clock.workload, clock.objective, seed=seed, budget_s=budget_s, evaluations=evaluations, start=start)
    devices = clock.op_devices(found.devices)
    value, overflow = clock.evaluate(devices)
    return Plan("annealing", devices, value, overflow, found.evaluations, found.planning_s)
