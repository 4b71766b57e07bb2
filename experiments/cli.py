"""The command line."""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..placement.errors import SegueError
from .planning_options import add_bench, add_compare, add_launch, add_place, add_profile, add_retry

if TYPE_CHECKING:
    from .run_config import RunConfig


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code (2 for bad input, 124 where a deadline ended the run, 130 after Ctrl-C)."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return options.command(options)
    except SegueError as error:
        print(f"segue: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("segue: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segue",
        description="An RL placement agent: moves a PyTorch model's operators between devices while it trains.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands)
    add_launch(commands)
    _add_train(commands)
    add_compare(commands)
    add_place(commands)
    add_profile(commands)
    add_bench(commands)
    return parser


def _add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="train a model; the agent moves its operators while it trains",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    run.set_defaults(command=_run)
    run.add_argument("--model", default="inception", help="zoo name, or path/to/file.py:function")
    run.add_argument("--data", default="digits", help="digits, or imagefolder:PATH")
    run.add_argument("--topology", default="auto", help="auto, this-machine, a preset, or a .yaml file")
    run.add_argument("--start", default="equal-layers", help="manual configuration or placement file to start from")
    run.add_argument("--agent", choices=("on", "off"), default="on", help="off: stay where the run starts")
    run.add_argument("--steps", type=int, default=200, help="training steps")
    run.add_argument("--batch-size", type=int, default=64, help="samples a step")
    run.add_argument("--microbatches", type=int, default=8, help="parts that a batch is cut into")
    run.add_argument("--image-size", type=int, default=32, help="pixels a side")
    run.add_argument("--learning-rate", type=float, default=1e-3, help="of AdamW")
    run.add_argument("--seed", type=int, default=0, help="of weights, data order, dropout and policy")
    run.add_argument(
        "--slow",
        action="append",
        metavar="DEVICE@STEP:FACTOR",
        help="slow an emulated device from a step on; may be given again; 'none' for no slow-down "
        "(default: the second device 3x slower from the middle of the run)",
    )
    run.add_argument("--policy", default="", help="pretrained weights; the shipped ones by default")
    run.add_argument("--profile", default="", help="op times of an earlier run (its profile.json) instead of measuring")
    run.add_argument("--evaluations", type=int, default=2000, help="simulated placements a decision")
    run.add_argument("--checkpoint-every", type=int, default=50, help="steps between checkpoints")
    run.add_argument("--run-dir", default="", help="folder to write to (default: runs/DATE-TIME)")
    run.add_argument(
        "--resume",
        metavar="RUN_DIR",
        default="",
        help="go on with a stopped run; but for --deadline, --elastic and --verify, its options are its own",
    )
    run.add_argument(
        "--elastic",
        action="store_true",
        help="when a worker is killed or hangs, go on from the last checkpoint on the other devices",
    )
    add_retry(run)
    run.add_argument(
        "--deadline",
        metavar="TIME",
        default="",
        help="end with everything saved so long from now: 45m, 2h30m; a move of the agent has to pay until then",
    )
    run.add_argument(
        "--approve",
        action="store_true",
        help="ask before every move, here or through a file in the run folder; the run goes on meanwhile",
    )
    run.add_argument(
        "--trace", metavar="STEPS", default="", help="write these steps' measured timelines for Perfetto: 3,10-12"
    )
    run.add_argument("--tensorboard", action="store_true", help="write TensorBoard curves into the run folder")
    run.add_argument("--verify", action="store_true", help="afterwards, compare the losses with plain PyTorch's")


def _add_train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train a placement policy, in the simulator or on a live run",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    train.set_defaults(command=_train)
    train.add_argument("--clock", choices=("simulated", "measured"), default="simulated", help="what rewards come from")
    train.add_argument(
        "--preset",
        default="",
        help="release, quick, tiny or finetune (by default what fits the clock); to see what they are worth, "
        "without-messages or without-history",
    )
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--timesteps", type=int, default=0, help="environment steps; 0: the preset's")
    train.add_argument("--out", default="policy.safetensors", help="where the weights go")
    train.add_argument("--log-dir", default="", help="checkpoints; an interrupted training goes on from there")
    train.add_argument("--tensorboard", action="store_true", help="write TensorBoard curves to --log-dir")
    train.add_argument("--workers", type=int, default=0, help="processes that make lessons; 0: one a core")
    train.add_argument("--device", default="auto", help="cpu, cuda, or auto: a GPU if there is one")
    train.add_argument("--graphs", default="", help="folder for captured graphs (by default in --log-dir, or ./graphs)")
    train.add_argument("--profiles", default="", help="folder of published GPU profiles to train on too")
    train.add_argument("--policy", default="", help="weights to go on from (with --clock measured: the shipped ones)")
    train.add_argument("--model", default="inception", help="with --clock measured: what to train on the devices")
    train.add_argument("--data", default="digits", help="with --clock measured")
    train.add_argument("--topology", default="auto", help="with --clock measured")
    train.add_argument("--start", default="equal-layers", help="with --clock measured")


def _run(options: argparse.Namespace) -> int:
    from .deadline import parse_duration
    from .run import resume_run, start_run

    how = {
        "verify": options.verify,
        "retry_s": options.retry_after if options.elastic else None,
        "deadline_s": parse_duration(options.deadline) if options.deadline else math.inf,
    }
    return resume_run(options.resume, **how) if options.resume else start_run(run_config(options), **how)


def run_config(options: argparse.Namespace) -> "RunConfig":
    """The configuration that the options of `segue run` describe.

    Raises:
        SegueError: naming the option that is wrong.
    """
    from .run_config import RunConfig, SlowDown, find_topology, parse_steps
    from .tensorboard import check_tensorboard

    if options.tensorboard:
        check_tensorboard()
    for name in ("steps", "batch_size", "microbatches", "image_size", "evaluations", "checkpoint_every"):
        if getattr(options, name) < 1:
            raise SegueError(f"--{name.replace('_', '-')} must be >= 1, got {getattr(options, name)}")
    if not options.learning_rate > 0:
        raise SegueError(f"--learning-rate must be > 0, got {options.learning_rate:g}")
    if options.microbatches > options.batch_size:
        raise SegueError(
            f"--microbatches must be at most --batch-size ({options.batch_size}), got {options.microbatches}"
        )
    topology = find_topology(options.topology)
    slow = [text for text in options.slow or [] if text != "none"]
    if options.slow is None and topology.devices[0].kind == "emulated" and topology.num_devices > 1:
        slow = [f"{topology.devices[1].name}@{options.steps // 2}:3"]
    return RunConfig(
        model=options.model,
        data=options.data,
        topology=topology.to_record(),
        start=options.start,
        agent=options.agent == "on",
        steps=options.steps,
        batch_size=options.batch_size,
        microbatches=options.microbatches,
        image_size=options.image_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
        slow=tuple(SlowDown.parse(text, topology, options.steps) for text in slow),
        policy=options.policy,
        profile=options.profile,
        evaluations=options.evaluations,
        checkpoint_every=options.checkpoint_every,
        run_dir=options.run_dir or time.strftime("runs/%Y%m%d-%H%M%S"),
        trace=parse_steps(options.trace, options.steps) if options.trace else (),
        tensorboard=options.tensorboard,
        approve=options.approve,
    )


def _train(options: argparse.Namespace) -> int:
    from .train_policy import train_policy

    return train_policy(options)
