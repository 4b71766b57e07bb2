"""Manual configurations, planners, the agent and data parallel training side by side on one clock."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from ..agent.pretrained import load_policy
from ..placement.clock import SimulatedClock
from ..placement.errors import SegueError
from ..placement.max_load import MaxLoadClock
from ..placement.planners import Plan, expand
from ..placement.strategies import data_parallel, naive
from ..placement.topology import Topology
from ..placement.workload_clock import WorkloadClock
from .contenders import Contender, not_available, of_plan, of_report, to_row
from .solve import AGENT, solve

DATA_PARALLEL = "data-parallel"
SHARES = ("equal", "speed")
NAIVE = " (naive)"


@dataclass(frozen=True, eq=False)
class Comparison:
    """Contenders for one objective, what is feasible first, the fastest first.

    Attributes:
        objective: `step-time`, `max-load` or `latency`.
        contenders: sorted; at least one.
    """

    objective: str
    contenders: tuple[Contender, ...]

    @property
    def winner(self) -> Contender:
        """The fastest that is feasible; if nothing is, what overflows least."""
        return self.contenders[0]

    @property
    def best_placement(self) -> Contender | None:
        """The fastest feasible placement that the clock prices (data parallel training is none)."""
        return next((c for c in self.contenders if c.feasible and c.devices is not None), None)

    @property
    def best_manual(self) -> Contender | None:
        """The fastest feasible manual configuration."""
        return next((c for c in self.contenders if c.feasible and c.kind == "manual"), None)

    def rows(self) -> list[dict[str, Any]]:
        """A record for each contender (`contenders.to_row`), in order; exactly one is `best`."""
        manual = self.best_manual
        value = manual.value_s if manual else None
        return [to_row(contender, contender is self.winner, value) for contender in self.contenders]


def compare(
    clock: SimulatedClock,
    names: Sequence[str],
    seed: int = 0,
    evaluations: int | None = None,
    plans: Sequence[Plan] = (),
    *,
    objective: str = "step-time",
    budget_s: float | None = None,
    policy: str = "",
    progress: bool = False,
) -> Comparison:
    """Run planners on one clock with the same seed and the same limits.

    Args:
        clock: what prices placements.
        names: planners, or `single`, `manual` (`segue.placement.planners.expand`), `agent`, `data-parallel`; `all` is all
            of them. A map of accelerate's is also priced as accelerate runs it: naively, one device at a time.
        seed: of every planner.
        evaluations: placements that each search may price.
        plans: plans made elsewhere for the same clock that take part.
        objective: what the clock's value is called.
        budget_s: seconds that each search may take (`solve`).
        policy: the agent's weights; the shipped ones if empty.
        progress: draw a bar on standard error, if that is a terminal.

    Raises:
        SegueError: if a planner or device is unknown, a limit is out of range, or a given file cannot be used. A planner
            that cannot handle this problem does not raise; its contender says why it is not available.
    """
    for what, limit in (("evaluations", evaluations), ("budget", budget_s)):
        if limit is not None and not limit > 0:
            raise SegueError(f"{what} must be > 0, got {limit:g}")
    if policy:
        load_policy(policy)
    # The first price includes compiling the scheduler, which is no planner's doing.
    clock.evaluate(np.zeros(clock.graph.num_ops, np.int64))
    contenders = [of_plan(clock, plan) for plan in plans]
    chosen = contender_names(names, clock.topology, _has_steps(clock))
    bar = tqdm(chosen, unit="planner", disable=None if progress else True, dynamic_ncols=True)
    for name in bar:
        bar.set_postfix_str(name)
        try:
            contenders += _contend(clock, name, seed, evaluations, budget_s, policy)
        except SegueError as error:
            if name.startswith("file:"):
                raise
            contenders.append(not_available(name, str(error)))
    if not contenders:
        raise SegueError("nothing to compare: name at least one planner, or all")
    return Comparison(objective, tuple(sorted(contenders, key=lambda contender: contender.rank)))


def contender_names(names: Sequence[str], topology: Topology, whole_steps: bool = True) -> list[str]:
    """What `compare` runs for these names, each once.

    Args:
        names: as for `compare`.
        topology: the devices.
        whole_steps: whether whole training steps are priced, which data parallel training can be compared with.

    Raises:
        SegueError: naming the first unknown planner or device, or unreadable file.
    """
    parallel = [f"{DATA_PARALLEL}:{shares}" for shares in SHARES]
    known = {name: [name] for name in (AGENT, *parallel)} | {DATA_PARALLEL: parallel}
    chosen = [name for given in names for name in known.get(given, [])]
    if "all" in names:
        chosen += [*(parallel if whole_steps and topology.num_devices > 1 else []), AGENT]
    planners = expand([name for name in names if name not in known], topology)
    return list(dict.fromkeys([*planners, *chosen]))


def _has_steps(clock: SimulatedClock) -> bool:
    return not isinstance(clock, MaxLoadClock | WorkloadClock) and bool(clock.graph.requires_grad.any())


def _contend(
    clock: SimulatedClock, name: str, seed: int, evaluations: int | None, budget_s: float | None, policy: str
) -> list[Contender]:
    begin = time.perf_counter()
    if name.startswith(f"{DATA_PARALLEL}:"):
        if not _has_steps(clock):
            raise SegueError(f"{name}: only whole training steps are compared with it; use the objective step-time")
        report = data_parallel(clock, name.partition(":")[2])
        return [of_report(name, DATA_PARALLEL, report, clock.topology, time.perf_counter() - begin)]
    plan = solve(name, clock, seed=seed, evaluations=evaluations, budget_s=budget_s, policy=policy)
    found = [of_plan(clock, plan)]
    if name.startswith("accelerate-") and _has_steps(clock):
        report = naive(clock, plan.devices)
        found.append(of_report(name + NAIVE, "manual", report, clock.topology, plan.planning_s))
    return found
