"""How good a placement is found with a few measured steps, where the costs that are believed are wrong.

    python -m segue.experiments.bench_few_steps --seed 0 [--quick] [--emulated] [--out docs/few-steps.png] [--json FILE]

The truth is a simulator in which the cost of every op, the pace of every device and of every link differ from what is
believed by up to 50 % (a log-uniform factor each); every measured time has an error of 2 %. Each method may measure 20
placements. What counts is the true step time of the placement that measured best, against the best that is known for the
truth: the best of long annealings and of the agent's search on the truth itself, and of everything that any method measured.
The black boxes (annealing, TPE, CMA-ES, random) see the step time, segue the report of the step. All times are simulated.
With `--emulated` they are those of real training on emulated devices that are off by as much, see `emulated_stand`.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..agent.few_steps import policy_planner
from ..placement.clock import SimulatedClock
from ..placement.files import write_text
from ..placement.placement import Placement
from ..placement.planners import plan
from .emulated_stand import bench_emulated_case
from .few_steps_figure import few_steps_figure
from .mismatch import BRANCHES, Case, Stand, believed_clock, true_clock
from .probing import METHODS
from .tables import format_table

Floats = NDArray[np.float64]
OneCase = Callable[[Case, int, int, int], list[dict[str, Any]]]
EVALUATIONS = 20
GOAL = 0.05

CASES = (
    Case("unet", "emulated-4"),
    Case(BRANCHES, "emulated-4-equal"),
    Case("unet", "workstation-4-mixed", 256, 64),
    Case("lstm-seq2seq", "emulated-4"),
    Case(BRANCHES, "emulated-4"),
    Case("unet", "hosts-2x2-4090-3090", 256, 64),
    Case("moe", "emulated-2"),
    Case("inception", "emulated-4"),
)
EMULATED = (
    Case("inception", "emulated-4", 16, microbatches=4),
    Case("unet", "emulated-4", 16, microbatches=4),
    Case("inception", "emulated-4-equal", 16, microbatches=4),
    Case("lstm-seq2seq", "emulated-2", 16, microbatches=4),
)


def main(arguments: list[str] | None = None) -> int:
    """Run every method on every case and print the tables; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="two cases (emulated: one) and a shorter reference")
    parser.add_argument("--emulated", action="store_true", help="measure steps of real training on emulated devices")
    parser.add_argument("--out", default="", help="picture to write")
    parser.add_argument("--json", default="", help="where to write every method's regrets")
    options = parser.parse_args(arguments)
    cases = EMULATED if options.emulated else CASES
    one = bench_emulated_case if options.emulated else _bench_case
    source = "emulated" if options.emulated else "simulated"
    if options.quick:
        cases = cases[: 1 if options.emulated else 2]

    def save(rows: list[dict[str, Any]]) -> None:
        if options.json:
            write_text(options.json, json.dumps(rows, indent=1) + "\n")
        if options.out:
            Path(options.out).write_bytes(few_steps_figure(rows, GOAL, source))

    rows = bench(cases, options.seed, 3_000 if options.quick else 10_000, one, save)
    print(cases_table(rows, source))
    print()
    print(methods_table(rows, source))
    return 0


def bench(
    cases: tuple[Case, ...], seed: int, reference: int, one: OneCase, save: Callable[[list[dict[str, Any]]], None]
) -> list[dict[str, Any]]:
    """Every method on every case.

    Args:
        cases: what is placed where.
        seed: of the truth, the noise and every method.
        reference: evaluations on the truth of each of the searches for the best known.
        one: gives the rows of one case.
        save: gets all rows so far after every case.

    Returns:
        A row a case and method: `case`, `method`, `best_known_s`, `regret` (of the best measured after each evaluation:
        true step time over best known, less 1), `measured` (placements), `seconds` (wall clock).
    """
    rows: list[dict[str, Any]] = []
    for number, case in enumerate(cases):
        rows += one(case, 1000 * seed + number, EVALUATIONS, reference)
        save(rows)
        own = [row for row in rows if row["case"] == case.name]
        shown = ", ".join(f"{row['method']} {row['regret'][-1]:.1%}" for row in own[:4])
        print(f"{case.name}: {own[0]['best_known_s']:.4g} s; {shown}", file=sys.stderr, flush=True)
    return rows


def _bench_case(case: Case, seed: int, evaluations: int, reference: int) -> list[dict[str, Any]]:
    believed = believed_clock(case, seed)
    truth = true_clock(believed, np.random.default_rng(seed))
    stands, seconds = {}, {}
    for name, method in METHODS.items():
        begin, stands[name] = time.perf_counter(), Stand(believed, truth, seed)
        method(stands[name], evaluations, seed)
        seconds[name] = time.perf_counter() - begin
    fitting = [row[2] for stand in stands.values() for row in stand.measured if row[0] == 0]
    known = min([*fitting, best_known(truth, seed, reference)])
    return [
        {
            "case": case.name,
            "method": name,
            "best_known_s": known,
            "regret": (stand.best_so_far(evaluations) / known - 1).tolist(),
            "measured": len(stand.measured),
            "seconds": seconds[name],
        }
        for name, stand in stands.items()
    ]


def best_known(truth: SimulatedClock, seed: int, evaluations: int) -> float:
    """Seconds of the best placement that long searches find on the truth itself."""
    plans = [plan("annealing", truth, seed=seed + run, evaluations=evaluations) for run in range(2)]
    start = Placement(plans[0].devices, truth.microbatches)
    others = [start, Placement(plans[1].devices, truth.microbatches)]
    found = policy_planner(500 + evaluations)(truth, others, seed)
    return min([truth.step_time(found.devices), *(found.value_s for found in plans if found.feasible)])


def _regrets(rows: list[dict[str, Any]], method: str) -> Floats:
    """`float64[cases, evaluations]`."""
    return np.array([row["regret"] for row in rows if row["method"] == method])


def methods_table(rows: list[dict[str, Any]], source: str) -> str:
    """Median regret of each method after some evaluations."""
    lines = []
    for method in METHODS:
        regret = _regrets(rows, method)
        last = regret[:, -1]
        quartiles = " to ".join(f"{value:.1%}" for value in np.quantile(last, (0.25, 0.75)))
        measured = np.median([row["measured"] for row in rows if row["method"] == method])
        seconds = np.median([row["seconds"] for row in rows if row["method"] == method])
        after = [f"{np.median(regret[:, count - 1]):.1%}" for count in (1, 2, 3, 5, 10, EVALUATIONS)]
        within = f"{(last <= GOAL).sum()} of {len(last)}"
        lines.append((method, *after, quartiles, f"{last.max():.1%}", within, int(measured), f"{seconds:.1f}"))
    heads = ("after 1", "2", "3", "5", "10", "20", "quartiles", "worst", "within 5%", "measured", "seconds")
    title = (
        f"True step time over best known, less 1; medians of {len(lines and _regrets(rows, 'segue'))} cases ({source})."
    )
    return f"{title}\n{format_table(lines, ('method', *heads))}"


def cases_table(rows: list[dict[str, Any]], source: str) -> str:
    """Regret after all evaluations, a row a case."""
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows):
        own = {row["method"]: row for row in rows if row["case"] == case}
        regrets = [f"{own[method]['regret'][-1]:.1%}" for method in METHODS]
        lines.append((case, f"{1e3 * next(iter(own.values()))['best_known_s']:.4g}", *regrets))
    short = [method.replace("dynamic program", "DP").replace("the beliefs", "beliefs") for method in METHODS]
    title = f"True step time over best known, less 1, after {EVALUATIONS} measured steps ({source})."
    return f"{title}\n{format_table(lines, ('case', 'best (ms)', *short))}"


if __name__ == "__main__":
    raise SystemExit(main())
