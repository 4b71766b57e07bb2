"""`propose`: a better placement from the policy, within a number of clock evaluations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..env.config import EnvConfig
from ..env.problem import make_problem
from ..placement.clock import SimulatedClock
from ..placement.errors import SegueError
from ..placement.move_cost import MoveCost, free_of_charge
from ..placement.placement import Placement, check_placement, colocate
from ..placement.planners.cheap_plans import cheap_plans
from ..placement.workload_clock import WorkloadClock
from .annealing import anneal
from .guided import guided_annealing
from .network import PlacementNetwork
from .pretrained import load_policy
from .rollout import roll_out
from .search import Search, SearchSettings, Visit
from .threads import one_thread

Ints = NDArray[np.int64]

# Moves that the policy scores in a proposal at most: of a topology of hundreds of devices a state has 100,000.
MOST_SCORES = 10_000_000


@dataclass(frozen=True, eq=False)
class Proposal:
    """A placement that the policy and its search propose.

    Attributes:
        placement: the proposed placement.
        predicted_step_time_s: what the clock says about it.
        start_step_time_s: the same about the placement that runs now.
        evaluations: distinct placements that the clock was asked for.
        source: what found it: `policy` (a rollout), `search`, `start` (nothing better than what runs now), or `start:` with
            the name of another start.
        moved_ops: ops that change device.
        feasible: whether it fits memory; false only if nothing that was visited does (and was not to be avoided).
    """

    placement: Placement
    predicted_step_time_s: float
    start_step_time_s: float
    evaluations: int
    source: str
    moved_ops: int
    feasible: bool


def propose(
    clock: SimulatedClock,
    start: Placement,
    *,
    policy: PlacementNetwork | None = None,
    evaluations: int = 400,
    seed: int = 0,
    starts: Mapping[str, Ints] | Sequence[Ints] = (),
    move_cost: MoveCost | None = None,
    avoid: Sequence[Ints] = (),
    max_groups: int = 64,
    settings: SearchSettings | None = None,
) -> Proposal:
    """Look for a faster placement: the policy's rollouts from the best starts, then annealing with its and uniform moves.

    Never worse than the best start that fits memory; of equals, the one that moves fewer bytes. Compared is the step time
    together with what moving there costs each step.

    Args:
        clock: predicts step times.
        start: the placement that runs now.
        policy: decides; by default the shipped one.
        evaluations: distinct placements that the clock may be asked for.
        seed: the same seed gives the same answer.
        starts: other op-to-device maps to begin from, with or without names.
        move_cost: what it costs to get to a map, over the steps in which that has to pay; nothing by default.
        avoid: maps that are not to be proposed, say because they were measured already. If nothing else was visited, the
            best of them is proposed all the same.
        max_groups: graphs with more ops are coarsened to this many groups.
        settings: how evaluations are spent.

    Raises:
        SegueError: if `start` or one of `starts` is no placement of the clock's graph, or `evaluations` < 1.
    """
    if evaluations < 1:
        raise SegueError(f"propose: evaluations must be >= 1, got {evaluations}")
    check_placement(start, clock.graph, clock.topology, "propose: start")
    named = _named(starts, clock, start.microbatches)
    settings = settings or SearchSettings()
    network = policy or load_policy()
    config = EnvConfig(max_groups, max(1, clock.topology.num_devices), max_edges=4 * max_groups)
    problem = make_problem(clock, config)

    devices = np.array(start.devices, np.int64)
    search = Search(
        problem, devices, evaluations, start.microbatches, clock.costs.state_bytes,
        move_cost or free_of_charge(devices), avoid,
    )  # fmt: skip
    now = search.visit(devices, "start")
    assert now is not None
    visits = [now, *(search.visit(other, f"start:{name}") for name, other in named.items())]
    with one_thread():
        _run(search, network, [visit for visit in visits if visit is not None], seed, settings)
    return _proposal(search, now, start, evaluations)


def propose_from_plans(
    clock: SimulatedClock,
    start: Placement,
    *,
    policy: PlacementNetwork,
    evaluations: int,
    seed: int,
    move_cost: MoveCost,
    settings: SearchSettings | None = None,
) -> Proposal:
    """`propose`, from the start and the cheap planners' answers, whose evaluations count."""
    # Its own start and the best of the others are priced once more, by the proposal's search.
    plans = cheap_plans(clock, seed, max(1, evaluations - 2))
    spent = sum(found.evaluations for found in plans)
    starts = {found.planner: found.devices for found in plans}
    proposal = propose(
        clock,
        start,
        policy=policy,
        evaluations=max(2, evaluations - spent),
        seed=seed,
        starts=starts,
        move_cost=move_cost,
        settings=settings,
    )
    return replace(proposal, evaluations=proposal.evaluations + spent)


def _run(search: Search, network: PlacementNetwork, starts: list[Visit], seed: int, settings: SearchSettings) -> None:
    """Rollouts from the best starts; from the best so far annealing with the policy's moves, then with uniform ones."""
    if search.problem.num_devices == 1:
        return
    # What each of the policy's two parts may score.
    scores = MOST_SCORES // (2 * search.problem.num_units * search.problem.num_devices) // 2
    starts = sorted(starts, key=lambda visit: visit.rank)
    begin = [starts[row % len(starts)] for row in range(settings.rollouts)]
    roll_out(search, network, begin, settings, search.left - min(int(settings.rollout_share * search.left), scores))
    assert search.best is not None
    # A workload has no compiled price; an annealing of its own goes on from the proposal.
    compiled = not isinstance(search.clock, WorkloadClock)
    unguided = max(0, search.left - min(settings.guided, scores)) if compiled else 0
    for cycle in range(settings.cycles):
        left = search.left - unguided
        floor = unguided + left * (settings.cycles - cycle - 1) // (settings.cycles - cycle)
        guided_annealing(search, network, search.best, seed + cycle, settings, floor)
    if settings.cycles and compiled:
        anneal(search, seed + settings.cycles)


def _named(starts: Mapping[str, Ints] | Sequence[Ints], clock: SimulatedClock, microbatches: int) -> dict[str, Ints]:
    """The other starts by name, checked, with colocation kept."""
    named = dict(starts) if isinstance(starts, Mapping) else {str(row): start for row, start in enumerate(starts)}
    for name, devices in named.items():
        named[name] = np.asarray(devices, np.int64)
        if named[name].shape == (clock.graph.num_ops,):
            named[name] = colocate(named[name], clock.graph)
        check_placement(Placement(named[name], microbatches), clock.graph, clock.topology, f"propose: start {name}")
    return named


def _proposal(search: Search, now: Visit, start: Placement, evaluations: int) -> Proposal:
    best = search.answer or search.best
    assert best is not None
    placement = Placement(best.devices, start.microbatches)
    return Proposal(
        placement=placement,
        predicted_step_time_s=best.step_time_s,
        start_step_time_s=now.step_time_s,
        evaluations=evaluations - search.left,
        source=best.source,
        moved_ops=len(placement.moved(start)),
        feasible=best.overflow_bytes == 0,
    )
