"""Measured steps and bytes moved until a running placement is good again after a device or link has changed.

    python -m segue.experiments.bench_adapting --seed 0 [--quick] [--json FILE]

Before the change the agent has measured some placements and runs the best of them; the truth differs from what was assumed
at first as in `bench_few_steps`. Then a device that is in use takes 2 to 4 times as long, or the link that carries most
falls to a tenth of its pace, or a device in use is gone. Every method goes on from the same beliefs and in the same way:
measure, learn from the step's report, plan, move. They differ in the plan: segue starts from what runs and counts the cost
of moving, the dynamic program and annealing plan from nothing. All times are simulated.
"""

import argparse
import copy
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..agent.beliefs import Beliefs
from ..agent.few_steps import Planner, best, optimise, policy_planner
from ..agent.readings import step_parts
from ..placement.clock import SimulatedClock
from ..placement.costs import Costs
from ..placement.files import write_text
from ..placement.move_cost import MoveCost
from ..placement.placement import Placement
from ..placement.planners import plan
from .bench_few_steps import GOAL, best_known
from .mismatch import BRANCHES, Case, Stand, believed_clock, make_beliefs, slower_devices, slower_links, true_clock
from .tables import format_table

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
BEFORE, AFTER = 10, 8
HORIZON = 100
MIB = 2.0**20
PLANNED = 3300
CASES = (
    Case(BRANCHES, "emulated-4"),
    Case("unet", "workstation-4-mixed", 256, 64),
    Case("unet", "emulated-4-equal"),
    Case("unet", "hosts-2x2-4090-3090", 256, 64),
)
METHODS = ("segue", "dynamic program", "annealing")


@dataclass(frozen=True, eq=False)
class Change:
    """What has happened.

    Attributes:
        name: in words.
        truth: the simulator that measures from now on.
        beliefs: what is known; of a change of pace nothing, until it is measured.
        running: device of every op, -1 where it is gone.
    """

    name: str
    truth: SimulatedClock
    beliefs: Beliefs
    running: Ints


def main(arguments: list[str] | None = None) -> int:
    """Run every method on every change and print the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one case and a shorter reference")
    parser.add_argument("--json", default="", help="where to write the rows")
    options = parser.parse_args(arguments)
    rows = bench(CASES[:1] if options.quick else CASES, options.seed, 3_000 if options.quick else 10_000)
    if options.json:
        write_text(options.json, json.dumps(rows, indent=1) + "\n")
    print(changes_table(rows))
    print()
    print(methods_table(rows))
    return 0


def bench(cases: Sequence[Case], seed: int, reference: int) -> list[dict[str, Any]]:
    """Every method on every change of every case.

    Args:
        cases: what is placed where.
        seed: of the truth, the noise, the changes and every method.
        reference: evaluations on the new truth of each of the searches for the best known.

    Returns:
        A row a case, change and method: `case`, `change`, `method`, `steps` (measured until within 5 % of the best known;
        `None` if that was not reached), `moved_bytes` (until then, or in all), `regret` (of the best measured at last).
    """
    rows: list[dict[str, Any]] = []
    for number, case in enumerate(cases):
        own = 1000 * seed + number
        rng = np.random.default_rng(own)
        believed = believed_clock(case, own)
        truth = true_clock(believed, rng)
        beliefs = make_beliefs(believed)
        planner = policy_planner(PLANNED)
        probes = list(optimise(Stand(believed, truth, own).step, beliefs, None, BEFORE, own, planner))
        for change in changes(truth, beliefs, best(probes).placement, rng):
            rows += [{"case": case.name, **row} for row in _bench_change(change, own, reference)]
            print(f"{case.name}, {change.name}: {_summary(rows[-len(METHODS) :])}", file=sys.stderr, flush=True)
    return rows


def changes(truth: SimulatedClock, beliefs: Beliefs, running: Placement, rng: np.random.Generator) -> list[Change]:
    """A device slows down, a link does, a device goes."""
    parts, devices = step_parts(truth, running), running.devices
    names = [device.name for device in truth.topology.devices]
    used = np.unique(devices)
    slow, gone = int(rng.choice(used)), int(rng.choice(used))
    factor = float(rng.uniform(2.0, 4.0))
    factors = np.where(np.arange(len(names)) == slow, factor, 1.0)
    both = parts.link + parts.link.T
    ends = np.unravel_index(int(np.argmax(both)), both.shape)
    links = np.ones(both.shape)
    links[ends], links[ends[::-1]] = 10.0, 10.0
    slower = SimulatedClock(truth.graph, slower_links(truth.topology, links), truth.costs, truth.sizes)
    return [
        Change(f"{names[slow]} takes {factor:.1f}x", slower_devices(truth, factors), copy.deepcopy(beliefs), devices),
        Change(f"link {names[ends[0]]}-{names[ends[1]]} at a tenth", slower, copy.deepcopy(beliefs), devices),
        Change(
            f"{names[gone]} is gone",
            SimulatedClock(
                truth.graph, truth.topology.without([names[gone]]), _without(truth.costs, gone), truth.sizes
            ),
            beliefs.without(gone),
            np.where(devices == gone, -1, devices - (devices > gone)),
        ),
    ]


def _without(costs: Costs, device: int) -> Costs:
    columns = {name: np.delete(costs.on_devices(getattr(costs, name)), device, axis=1) for name in _COLUMNS}
    overhead = np.delete(costs.overhead_s, device)
    return replace(costs, **columns, device_class=np.arange(len(overhead)), overhead_s=overhead)


_COLUMNS = ("forward_s", "backward_s", "update_s")


def _bench_change(change: Change, seed: int, reference: int) -> list[dict[str, Any]]:
    op_bytes = 3 * change.truth.graph.parameter_bytes + change.truth.graph.buffer_bytes
    stands, moved = {}, {}
    for method in METHODS:
        beliefs = copy.deepcopy(change.beliefs)
        stands[method] = Stand(beliefs.clock, change.truth, seed)
        maps = _recover(stands[method], beliefs, change.running, _planner(method, change, op_bytes), seed)
        steps = np.stack([change.running, *maps])
        moved[method] = np.cumsum(((steps[1:] != steps[:-1]) * op_bytes).sum(axis=1))
    fitting = [row[2] for stand in stands.values() for row in stand.measured if row[0] == 0]
    known = min([*fitting, best_known(change.truth, seed, reference)])
    can_stay = bool((change.running >= 0).all())
    return [
        {**_row(change.name, method, stand, moved[method], known), "can_stay": can_stay}
        for method, stand in stands.items()
    ]


def _recover(stand: Stand, beliefs: Beliefs, running: Ints, planner: Planner, seed: int) -> list[Ints]:
    """The maps that are measured after the change; the first is what runs, if it still can."""
    start = Placement(running, stand.microbatches)
    if (running < 0).any():
        start = planner(beliefs.clock, _repaired(beliefs.clock, running), seed)
    maps: list[Ints] = []
    for probe in optimise(stand.step, beliefs, start, AFTER, seed, planner):
        maps.append(probe.placement.devices)
    return maps


def _repaired(clock: SimulatedClock, running: Ints) -> list[Placement]:
    """What runs, with the ops that have no device on one of those that are left; the fastest first."""
    maps = [np.where(running < 0, device, running) for device in range(clock.topology.num_devices)]
    return [Placement(found, clock.microbatches) for found in sorted(maps, key=lambda m: clock.evaluate(m)[::-1])]


def _planner(method: str, change: Change, op_bytes: Floats) -> Planner:
    if method == "segue":
        per_byte = float(change.truth.topology.seconds_per_byte.max())
        return policy_planner(PLANNED, MoveCost(change.running, op_bytes * per_byte / HORIZON, 0.0))
    name = "contiguous" if method == "dynamic program" else method

    def planner(clock: SimulatedClock, measured: Sequence[Placement], seed: int) -> Placement:
        del measured
        found = plan(name, clock, seed=seed, evaluations=PLANNED)
        return Placement(found.devices, clock.microbatches)

    return planner


def _row(change: str, method: str, stand: Stand, moved: Floats, known: float) -> dict[str, Any]:
    regret = stand.best_so_far(AFTER) / known - 1
    within = np.flatnonzero(regret <= GOAL)
    steps = int(within[0]) + 1 if within.size else None
    return {
        "change": change,
        "method": method,
        "best_known_s": known,
        "steps": steps,
        "moved_bytes": float(moved[(steps or len(moved)) - 1]),
        "at_first": float(regret[0]),
        "regret": float(regret[-1]),
    }


def _summary(rows: list[dict[str, Any]]) -> str:
    return ", ".join(f"{row['method']} {row['steps']} steps, {row['regret']:.1%}" for row in rows)


def changes_table(rows: list[dict[str, Any]]) -> str:
    """Measured steps, bytes moved and the last regret of each method, a row a change."""
    lines = []
    for number in range(0, len(rows), len(METHODS)):
        own = rows[number : number + len(METHODS)]
        cells = [
            cell
            for row in own
            for cell in (row["steps"] or f"> {AFTER}", f"{row['moved_bytes'] / MIB:.1f}", f"{row['regret']:.1%}")
        ]
        first = f"{own[0]['at_first']:.0%}" if own[0]["can_stay"] else None
        lines.append((own[0]["case"], own[0]["change"], first, *cells))
    heads = [head for method in ("segue", "DP", "annealing") for head in (f"{method}: steps", "MiB", "regret")]
    title = f"Measured steps to within {GOAL:.0%} of the best known, MiB moved until then, regret after {AFTER} (simulated)."
    return f"{title}\n{format_table(lines, ('case', 'change', 'unanswered', *heads))}"


def methods_table(rows: list[dict[str, Any]]) -> str:
    """How often each method recovers, and at what cost."""
    lines = []
    for method in METHODS:
        own = [row for row in rows if row["method"] == method]
        reached = [row["steps"] for row in own if row["steps"]]
        lines.append(
            (
                method,
                f"{len(reached)} of {len(own)}",
                _median([row["steps"] or np.inf for row in own], lambda steps: f"{steps:.4g}"),
                _median([row["moved_bytes"] for row in own], lambda moved: f"{moved / MIB:.1f}"),
                _median([row["regret"] for row in own], lambda regret: f"{regret:.1%}"),
                f"{max(row['regret'] for row in own):.1%}",
            )
        )
    heads = ("method", f"within {GOAL:.0%}", "median steps", "median MiB moved", "median regret", "worst regret")
    return format_table(lines, heads)


def _median(values: list[float], write: Callable[[float], str]) -> str:
    middle = float(np.median(values))
    return write(middle) if np.isfinite(middle) else f"> {AFTER}"


if __name__ == "__main__":
    raise SystemExit(main())
