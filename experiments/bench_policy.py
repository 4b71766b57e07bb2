"""How good a policy is on unseen families: equal evaluations, zero-shot, any hardware, ablations, seeds of training.

`python -m segue.experiments.bench_policy TABLE` prints a table of the model card. All step times are simulated.
"""

import argparse
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ..agent.network import PlacementNetwork
from ..agent.pretrained import load_policy
from ..agent.propose import propose
from ..agent.search import ZERO_SHOT, SearchSettings
from ..placement.coarsen import coarsen
from ..placement.objective_clock import OBJECTIVES
from ..placement.planners.cheap_plans import cheap_plans
from ..placement.planners.unit_annealing import anneal_units
from .graph_pool import GraphPool, load_pool
from .policy_cases import Case, hardware_cases, held_out_cases
from .policy_methods import (
    ANNEALING,
    GIVEN,
    GROUPS,
    PLANNED,
    Method,
    bounds_alone,
    by_place,
    by_policy,
    manual_starts,
    uniform,
    untrained,
)

Floats = NDArray[np.float64]
SAME = 1e-3
"""Relative difference below which two step times count as equal."""
ROLLOUTS_ALONE = SearchSettings(rollout_share=1.0, cycles=0, guided=0)
LONG = 10_000
"""Evaluations of the annealing runs that stand for the best known."""


def measure(cases: Sequence[Case], methods: Mapping[str, Method], evaluations: int, seed: int) -> dict[str, Floats]:
    """Step times of every method on every case, from the case's start, `float64[cases]` each."""
    columns = {name: np.full(len(cases), np.inf) for name in methods}
    for row, case in enumerate(tqdm(cases, unit="case", leave=False, desc=f"{evaluations} evaluations")):
        for name, method in methods.items():
            columns[name][row] = method(case.clock, case.start, evaluations, seed)
    return columns


def strongest(columns: Mapping[str, Floats], among: Iterable[str] = ANNEALING) -> str:
    """The annealing with the least geometric mean; cases that it cannot solve count twice their slowest answer."""
    everything = np.array([columns[name] for name in ANNEALING])
    worst = np.where(np.isfinite(everything), everything, 0).max(axis=0)
    return min(among, key=lambda name: float(np.log(np.minimum(columns[name], 2 * np.maximum(worst, 1e-30))).mean()))


def ratios(step: Floats, other: Floats) -> tuple[float, int, int, int]:
    """Geometric mean of step over other where both are finite, cases better, cases worse, cases solved by neither."""
    both = np.isfinite(step) & np.isfinite(other)
    better = int((step < other * (1 - SAME)).sum())
    worse = int((step > other * (1 + SAME)).sum())
    unsolved = int((np.isinf(step) & np.isinf(other)).sum())
    return float(np.exp(np.log(step[both] / other[both]).mean())), better, worse, unsolved


def equal_evaluations(
    cases: Sequence[Case], policies: Mapping[str, Method], budgets: Sequence[int], seed: int
) -> dict[int, dict[str, Floats]]:
    """Step times by number of evaluations and method."""
    return {budget: measure(cases, {**ANNEALING, **policies}, budget, seed) for budget in budgets}


def equal_table(results: Mapping[int, Mapping[str, Floats]]) -> str:
    """A row for each number of evaluations and method, relative to the strongest annealing at that number."""
    lines = ["| evaluations | method | / strongest annealing | better, worse | found none |", "|---|---|---|---|---|"]
    for budget, columns in results.items():
        peer = strongest(columns)
        for name, step in columns.items():
            mean, better, worse, _ = ratios(step, columns[peer])
            mark = " (strongest)" if name == peer else ""
            lines.append(f"| {budget} | {name}{mark} | {mean:.3f} | {better}, {worse} | {int(np.isinf(step).sum())} |")
    return "\n".join(lines)


def plot_equal(results: Mapping[int, Mapping[str, Floats]], names: Sequence[str], path: str | Path) -> None:
    """Geometric mean relative to the strongest annealing against the number of evaluations, a line a method."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for name in names:
        means = [ratios(columns[name], columns[strongest(columns)])[0] for columns in results.values()]
        axes.plot(list(results), means, marker="o", label=name)
    axes.axhline(1.0, color="black", linewidth=0.8, label="strongest annealing")
    axes.set(xscale="log", xlabel="evaluated placements", ylabel="simulated step time / strongest annealing")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def best_known(case: Case, starts: Sequence[NDArray[np.int64]], seed: int) -> float:
    """The shortest step that long annealing runs from several starts find."""
    groups = coarsen(case.clock.graph, GROUPS)
    found = [
        anneal_units(case.clock, groups, start, evaluations=LONG, seed=seed + row, hot=0.03)
        for row, start in enumerate(starts)
    ]
    return min((one.step_time_s for one in found if one.overflow_bytes == 0), default=np.inf)


def zero_shot(cases: Sequence[Case], policy: str | None, seed: int, max_groups: int = GROUPS) -> list[dict[str, float]]:
    """One greedy rollout from the best cheap plan of every case, with nothing taken back.

    Returns:
        A row a case: step times of the rollout's best (`rollout`), of what it began from (`plan`), of the best manual
        configuration (`manual`), of the best known (`best`); `seconds` of planning and rollout; `evaluations` of both.
    """
    network, rows = load_policy(policy), []
    for case in tqdm(cases, unit="case", leave=False, desc="zero-shot"):
        begin = time.perf_counter()
        plans = cheap_plans(case.clock, seed, LONG)
        found = propose(
            case.clock, replace(case.start, devices=plans[0].devices), policy=network, evaluations=LONG, seed=seed,
            max_groups=max_groups, settings=ZERO_SHOT,
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        manual, by_hand = min(manual_starts(case.clock).values(), key=lambda found: found[0])
        long = best_known(case, [plans[0].devices, by_hand, case.start.devices], seed)
        rows.append(
            {
                "rollout": found.predicted_step_time_s,
                "plan": plans[0].value_s,
                "manual": manual,
                "best": min(found.predicted_step_time_s, long),
                "seconds": seconds,
                "evaluations": found.evaluations + sum(one.evaluations for one in plans),
            }
        )
    return rows


def zero_shot_table(cases: Sequence[Case], rows: Sequence[Mapping[str, float]]) -> str:
    """A row for each case, and what they come to."""
    lines = [
        "| case | rollout / best known | best cheap plan / best known | rollout / best manual | evaluations | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for case, row in zip(cases, rows, strict=True):
        lines.append(
            f"| {case.name} | {row['rollout'] / row['best']:.3f} | {row['plan'] / row['best']:.3f} "
            f"| {row['rollout'] / row['manual']:.3f} | {row['evaluations']:.0f} | {row['seconds']:.2f} |"
        )
    rollout, plan = (float(np.median([row[key] / row["best"] for row in rows])) for key in ("rollout", "plan"))
    better = np.mean([row["rollout"] < row["manual"] * (1 - SAME) for row in rows])
    seconds = np.median([row["seconds"] for row in rows])
    lines.append(
        f"| median (share better than every manual one) | {rollout:.3f} | {plan:.3f} | {better:.0%} | | {seconds:.2f} |"
    )
    return "\n".join(lines)


def hardware(cases: Sequence[Case], policy: str | None, evaluations: int, seed: int) -> str:
    """`segue place` from the best manual configuration of every topology, as a table."""
    network = load_policy(policy)
    lines = ["| topology | devices | / best manual | / strongest annealing, same start |", "|---|---|---|---|"]
    for case in tqdm(cases, unit="case", leave=False, desc="hardware"):
        step, start = min(manual_starts(case.clock).values(), key=lambda found: found[0])
        begin = replace(case.start, devices=start)
        found = by_place(network)(case.clock, begin, evaluations, seed)
        peer = min(method(case.clock, begin, evaluations, seed) for method in ANNEALING.values())
        lines.append(f"| {case.family} | {case.clock.topology.num_devices} | {found / step:.3f} | {found / peer:.3f} |")
    return "\n".join(lines)


def spread(runs: Sequence[Mapping[int, Mapping[str, Floats]]], policies: Sequence[str], budgets: Sequence[int]) -> str:
    """A row for each number of evaluations and policy: its ratios to the strongest annealing in each run of the evaluation.

    Args:
        runs: of each run, step times by number of evaluations and method.
        policies: methods that differ in the seed of their training alone.
        budgets: numbers of evaluations.
    """
    heads = ["evaluations", "policy", *(f"run {run}" for run in range(len(runs))), "mean", "deviation", "better, worse"]
    lines = [_row(heads), _row(["---"] * len(heads))]
    for budget in budgets:
        found = [[ratios(run[budget][name], run[budget][strongest(run[budget])]) for run in runs] for name in policies]
        means = np.array([[one[0] for one in of] for of in found])
        counts = np.array([[one[1:3] for one in of] for of in found]).sum(axis=1)
        for name, row, (better, worse) in zip(policies, means, counts, strict=True):
            deviation = row.std(ddof=1) if len(row) > 1 else 0.0
            lines.append(
                _row(
                    [
                        budget,
                        name,
                        *(f"{m:.3f}" for m in row),
                        f"{row.mean():.3f}",
                        f"{deviation:.3f}",
                        f"{better}, {worse}",
                    ]
                )
            )
        of_seeds = means.mean(axis=1)
        deviation = of_seeds.std(ddof=1) if len(of_seeds) > 1 else 0.0
        better, worse = counts.sum(axis=0)
        total = [budget, "all", *(f"{m:.3f}" for m in means.mean(axis=0)), f"{means.mean():.3f}", f"{deviation:.3f}"]
        lines.append(_row([*total, f"{better}, {worse}"]))
    return "\n".join(lines)


def against(runs: Sequence[Mapping[int, Mapping[str, Floats]]], policy: str, budgets: Sequence[int]) -> str:
    """A row for each number of evaluations and set of annealings (`GIVEN`): a policy's mean ratio to the strongest of them.

    Args:
        runs: as for `spread`.
        policy: name of the method.
        budgets: numbers of evaluations.
    """
    heads = ["evaluations", "simulated annealing", f"{policy} / strongest of them", "better, worse"]
    lines = [_row(heads), _row(["---"] * len(heads))]
    for budget in budgets:
        for name, among in GIVEN.items():
            found = [ratios(run[budget][policy], run[budget][strongest(run[budget], among)]) for run in runs]
            mean, better, worse, _ = np.array(found).T
            lines.append(_row([budget, name, f"{mean.mean():.3f}", f"{better.sum():.0f}, {worse.sum():.0f}"]))
    return "\n".join(lines)


def _row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _spread(pool: GraphPool, options: argparse.Namespace) -> str:
    policies = {name: by_place(network) for name, network in _networks(options.policy).items()}
    runs = []
    for run in range(options.runs):
        cases = held_out_cases(pool.held_out, options.cases, options.seed + run, options.objective)
        runs.append(equal_evaluations(cases, policies, options.evaluations, options.seed + run))
    names = list(policies)
    return "\n\n".join([spread(runs, names, options.evaluations), against(runs, names[0], options.evaluations)])


def _networks(paths: Sequence[str]) -> dict[str, PlacementNetwork]:
    """Policies by the names of their files, the shipped one if there are none."""
    return {Path(path).stem if path else "policy": load_policy(path or None) for path in paths or [""]}


def _policies(paths: Sequence[str]) -> dict[str, Method]:
    networks = _networks(paths)
    first = next(iter(networks.values()))
    return {
        **PLANNED,
        **{f"segue place, {name}": by_place(network) for name, network in networks.items()},
        "segue place, uniform moves": by_place(first, uniform()),
        "segue place, untrained weights": by_place(untrained(first)),
        **{f"its search from the start alone, {name}": by_policy(network) for name, network in networks.items()},
    }


def _ablations(paths: Sequence[str]) -> dict[str, Method]:
    """The first policy, its parts, and the other policies, which were trained to see less."""
    (_, network), *others = _networks(paths).items()
    return {
        "segue place, policy": by_place(network),
        **{f"trained {name}": by_place(other) for name, other in others},
        "untrained weights": by_place(untrained(network)),
        "bounds alone, no network": by_place(bounds_alone(network)),
        "uniform moves": by_place(network, uniform()),
        "without rollouts": by_place(network, replace(SearchSettings(), rollouts=0)),
        "rollouts alone": by_place(network, ROLLOUTS_ALONE),
        "without the cheap plans": by_policy(network),
    }


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m segue.experiments.bench_policy", description=__doc__)
    parser.add_argument("table", choices=("equal", "zero-shot", "hardware", "ablation", "spread"))
    parser.add_argument(
        "--policy",
        nargs="*",
        default=[],
        help="weights (.safetensors); by default the shipped ones; with ablation, the others were trained to see less",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the cases and of every method")
    parser.add_argument(
        "--runs", type=int, default=3, help="with spread: evaluations of every policy, on cases of their own"
    )
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--evaluations", type=int, nargs="*", default=[100, 1000, 10_000])
    parser.add_argument(
        "--groups", type=int, default=GROUPS, help="with zero-shot: larger graphs are coarsened to them"
    )
    parser.add_argument("--graphs", default="graphs", help="folder for captured graphs")
    parser.add_argument("--profiles", default="", help="folder of published GPU profiles, two of which are held out")
    parser.add_argument("--objective", choices=OBJECTIVES, default="step-time", help="with equal, ablation, zero-shot")
    parser.add_argument("--png", default="", help="with equal: a picture")
    parser.add_argument("--quick", action="store_true", help="5 cases, no more than 1000 evaluations")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.quick:
        options.cases, options.evaluations = 5, [budget for budget in options.evaluations if budget <= 1000]
    pool = load_pool(options.graphs, options.profiles)
    policy = options.policy[0] if options.policy else None
    if options.table == "hardware":
        cases = hardware_cases(pool.held_out["inception"][0], options.seed)
        print(hardware(cases[:5] if options.quick else cases, policy, options.evaluations[0], options.seed))
        return
    if options.table == "spread":
        print(_spread(pool, options))
        return
    cases = held_out_cases(pool.held_out, options.cases, options.seed, options.objective)
    if options.table == "zero-shot":
        print(zero_shot_table(cases, zero_shot(cases, policy, options.seed, options.groups)))
        return
    methods = (_policies if options.table == "equal" else _ablations)(options.policy)
    results = equal_evaluations(cases, methods, options.evaluations, options.seed)
    print(equal_table(results))
    if options.png:
        plot_equal(results, list(methods), options.png)


if __name__ == "__main__":
    main()
