"""The command line of `segue compare`, `segue place` and `segue bench`; their work is imported when it begins."""

import argparse
from typing import Any

EVALUATIONS = 1000
"""Placements that a search may price where neither evaluations nor seconds are given."""
LARGE_PARAMETERS = 200_000_000
"""Models with more parameters are only described (on the meta device) unless measuring is asked for."""
COSTS = ("auto", "measured", "roofline")
WORKLOAD_BUDGET_S = 10.0
_OBJECTIVES = "step-time, max-load (steady-state throughput) or latency (of one sample)"
_MODEL = "zoo name, hf:NAME, or path/to/file.py:function"


def add_compare(commands: Any) -> None:
    """Add `compare` to the command line."""
    compare = commands.add_parser(
        "compare",
        help="compare manual configurations, planners and the agent on a model",
        description="Compare manual configurations, planners, data parallel training and the agent on one problem.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    compare.set_defaults(command=_compare)
    compare.add_argument("--model", default="inception", help=_MODEL)
    compare.add_argument("--graph", default="", metavar="WORKLOAD.json", help="a public workload instead of a model")
    compare.add_argument("--objective", default="", help=f"{_OBJECTIVES}; default: step-time, for a workload max-load")
    _add_problem(compare)
    compare.add_argument("--planners", default="all", metavar="A,B", help="planners; all, manual, agent, data-parallel")
    compare.add_argument(
        "--placement", action="append", default=[], metavar="FILE", help="a placement or device_map; may be given again"
    )
    compare.add_argument(
        "--evaluations", type=int, help=f"simulated placements for each search ({EVALUATIONS} without a budget)"
    )
    compare.add_argument(
        "--budget",
        type=float,
        metavar="SECONDS",
        help="for each search; only --evaluations repeats exactly under a seed",
    )
    compare.add_argument("--measure", action="store_true", help="run the best placements on the devices and compare")
    compare.add_argument("--json", default="", metavar="FILE", help="also write the rows, and a picture beside them")
    compare.add_argument("--picture", default="", metavar="FILE.png", help="also draw bars and timelines")


def add_place(commands: Any) -> None:
    """Add `place` to the command line."""
    place = commands.add_parser(
        "place",
        help="find a placement and write it",
        description="Find a placement of a model, or of a workload of the public operator-placement benchmark; write it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    place.set_defaults(command=_place)
    what = place.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", default="", help=_MODEL)
    what.add_argument("--graph", default="", metavar="WORKLOAD.json", help="a workload in the benchmark's JSON")
    place.add_argument("--objective", default="", help=f"{_OBJECTIVES}; default: step-time, for a workload max-load")
    _add_problem(place)
    place.add_argument(
        "--planner", default="all", help="of a model: who places it; all: the best of agent and planners"
    )
    place.add_argument(
        "--budget", type=float, metavar="SECONDS", help=f"for each search ({WORKLOAD_BUDGET_S:g} for a workload)"
    )
    place.add_argument(
        "--evaluations",
        type=int,
        default=0,
        help=f"placements for each search; 0: the budget ends it, else {EVALUATIONS}",
    )
    place.add_argument("--out", default="", help="where the answer goes (placement.json, split.json for a workload)")
    place.add_argument("--table", action="store_true", help="of a model: print where every module goes")
    place.add_argument("--device-map", default="", metavar="FILE.json", help="of a model: also as a device_map")
    place.add_argument(
        "--trace", default="", metavar="FILE.json", help="of a model: also the predicted step, for Perfetto"
    )
    place.add_argument(
        "--pipelining-csv", default="", metavar="FILE.csv", help="of a model: also the schedule for torch's pipelines"
    )


def add_bench(commands: Any) -> None:
    """Add `bench` to the command line."""
    benchmarks = commands.add_parser("bench", help="run a benchmark and print its figures")
    placement = benchmarks.add_subparsers(required=True, metavar="BENCHMARK").add_parser(
        "placement", help="run every planner over a folder of public workloads"
    )
    placement.set_defaults(command=_bench_placement)
    add_bench_placement_options(placement)


def add_bench_placement_options(parser: argparse.ArgumentParser) -> None:
    """The options of `segue bench placement`."""
    parser.add_argument("folder", help="holds workloads as JSON, at any depth")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each search of each workload (default: 10)")
    parser.add_argument("--evaluations", type=int, help="placements for each search instead; repeats exactly")
    parser.add_argument("--planners", default="all", metavar="A,B", help="planners; all, manual, agent (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="", metavar="FILE", help="also write the rows to this file")


def _add_problem(parser: argparse.ArgumentParser) -> None:
    """The options that `planning_problem.make_problem` reads, but for the model and the objective."""
    parser.add_argument(
        "--topology", default="emulated-4", help="a preset, this-machine, or a .yaml, .json or .txt file"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="samples a step")
    parser.add_argument("--microbatches", type=int, default=8, help="parts that a batch is cut into")
    parser.add_argument("--image-size", type=int, default=32, help="pixels a side, for models of images")
    parser.add_argument("--sequence-length", type=int, default=64, help="tokens, for models of sequences")
    parser.add_argument("--seed", type=int, default=0, help="of weights and of every planner")
    parser.add_argument("--profile", default="", help="op times of a run (its profile.json) instead of measuring")
    parser.add_argument(
        "--costs",
        default="auto",
        help="measured (on a CPU core here), roofline (from the devices' datasheets), or auto: measured for models of up "
        f"to {LARGE_PARAMETERS // 10**6} M parameters",
    )
    parser.add_argument("--policy", default="", help="the agent's pretrained weights; the shipped ones by default")


def _compare(options: argparse.Namespace) -> int:
    from .compare_command import compare_command

    return compare_command(options)


def _place(options: argparse.Namespace) -> int:
    from .place_command import place_command

    return place_command(options)


def _bench_placement(options: argparse.Namespace) -> int:
    from .bench_placement import bench_command

    return bench_command(options)


def add_profile(commands: Any) -> None:
    """Add `segue profile` to the command line."""
    profile = commands.add_parser(
        "profile",
        help="measure the op times of a model on this machine",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    profile.set_defaults(command=_profile)
    profile.add_argument("--model", default="inception", help=_MODEL)
    profile.add_argument("--device", default="", help="cpu (one core) or cuda:N (default: cuda:0 if there is one)")
    profile.add_argument("--batch-size", type=int, default=64, help="samples a step")
    profile.add_argument("--microbatches", type=int, default=8, help="parts that a batch is cut into; one is measured")
    profile.add_argument("--image-size", type=int, default=32, help="pixels a side, for images")
    profile.add_argument("--sequence-length", type=int, default=64, help="tokens a sample, for text")
    profile.add_argument("--repeats", type=int, default=5, help="timed runs of each op; the shortest counts")
    profile.add_argument("--seed", type=int, default=0, help="of weights and inputs")
    profile.add_argument("--out", default="profile.json", help="where the op times go")
    profile.add_argument(
        "--topology-out", metavar="FILE.yaml", default="", help="also write this machine's devices and measured links"
    )


def _profile(options: argparse.Namespace) -> int:
    from .profile_command import profile_command

    return profile_command(options)


def add_launch(commands: Any) -> None:
    """Add `segue launch` to the command line."""
    launch = commands.add_parser(
        "launch",
        help="run your own script, with a worker for each device",
        description="Run a script in one process for each device of a topology on this machine. In the script, `join()` and "
        "`topology_of_run()` of segue.placement.executor find the other workers and the devices.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    launch.set_defaults(command=_launch)
    launch.add_argument("--topology", default="this-machine", help="this-machine, auto, a preset, or a .yaml file")
    launch.add_argument(
        "--timeout",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="a worker that hears nothing for so long gives up",
    )
    launch.add_argument(
        "--elastic",
        action="store_true",
        help="when a worker is killed or hangs, start the script again on the other devices; it has to go on from its "
        "own last checkpoint",
    )
    add_retry(launch)
    launch.add_argument("--show-all", action="store_true", help="show what every worker prints, not only the first")
    launch.add_argument("script", help="a Python file")
    launch.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the script's own arguments")


def add_retry(command: argparse.ArgumentParser) -> None:
    """`--retry-after`, which goes with `--elastic`."""
    command.add_argument(
        "--retry-after",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="with --elastic: try a lost device again after so long; the workers then change over at a checkpoint",
    )


def _launch(options: argparse.Namespace) -> int:
    from .launch_command import launch_command

    return launch_command(options)
