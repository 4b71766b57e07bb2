"""`segue run`: starts the workers of a training run, stops them when asked to, and reports."""

import math
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ..agent.proposer import Request, answer
from ..placement.clock import Span
from ..placement.errors import SegueError
from ..placement.executor import WorkerFailed, launch, run_elastic
from ..placement.executor.checkpoint_files import LATEST
from ..placement.files import write_json
from ..placement.topology import Topology
from .approval import Questions
from .data import load_data
from .job import TIME_UP, Outcome, make_model, make_optimizer, run_batches, train
from .launch_command import say
from .plain import plain_losses
from .record import Event, RunRecord
from .report import write_report
from .run_config import RunConfig
from .run_files import CHECKPOINTS, STOP
from .summary import Run, summarize
from .tables import format_table
from .trace import read_traces

VERIFY_TOLERANCE = 1e-4
"""Largest relative difference of losses to plain PyTorch: float32 sums in another order, amplified by training."""
EXIT_DEADLINE = 124
"""As `timeout` has it."""
GRACE_S = 60.0
"""Seconds that a run has to stop by itself after Ctrl-C."""


def start_run(
    config: RunConfig,
    *,
    resume: bool = False,
    verify: bool = False,
    retry_s: float | None = None,
    deadline_s: float = math.inf,
) -> int:
    """Run to the end, write the run folder, print the table; returns the exit code.

    Args:
        config: the run.
        resume: go on from its last checkpoint.
        verify: compare the losses with plain PyTorch's at the end.
        retry_s: go on without a device whose worker is lost, and try it again after so long; by default the run ends.
        deadline_s: everything is saved so many seconds from now, whether all steps are done or not.

    Raises:
        SegueError: for bad input, before anything is written where that can be known.
    """
    folder, ends_at = Path(config.run_dir), time.time() + deadline_s
    if not resume:
        _check(config)
        _make_folder(folder)
        config.save()
    (folder / STOP).unlink(missing_ok=True)
    print(f"segue: {config.model} on {config.data}, {_devices(config)}; writing to {folder}", file=sys.stderr)
    try:
        with _graceful_stop(folder) as poll:
            outcome = _train(config, resume, retry_s, ends_at, poll)
    except SegueError:
        if not resume and not has_checkpoint(folder):
            shutil.rmtree(folder)
        raise
    except (WorkerFailed, KeyboardInterrupt) as error:
        print(f"segue: {error or 'interrupted'}", file=sys.stderr)
        _say_resume(folder)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    finally:
        (folder / STOP).unlink(missing_ok=True)
    report(folder, outcome.overruns, outcome.loop_s)
    if outcome.stopped:
        why = "its deadline" if outcome.stopped == TIME_UP else "a signal"
        print(f"segue: stopped by {why} after step {outcome.steps} of {config.steps}", file=sys.stderr)
        _say_resume(folder)
        return EXIT_DEADLINE if outcome.stopped == TIME_UP else 130
    return check_losses(config) if verify else 0


def _train(
    config: RunConfig, resume: bool, retry_s: float | None, ends_at: float, watch_signals: Callable[[], None]
) -> Outcome:
    folder = Path(config.run_dir)
    questions = Questions(folder) if config.approve else None

    def poll() -> None:
        watch_signals()
        if questions is not None:
            questions.poll()

    def start(here: Topology, end_when: Callable[[], bool]) -> Outcome:
        again = resume or has_checkpoint(folder)
        return launch(train, here, config, here, again, ends_at, poll=poll, end_when=end_when)[0]

    if retry_s is None:
        return start(config.devices(), lambda: False)
    return run_elastic(start, config.devices(), say, retry_s)


def has_checkpoint(folder: Path) -> bool:
    """Whether a run can go on from there."""
    return (folder / CHECKPOINTS / LATEST).exists()


def _devices(config: RunConfig) -> str:
    topology = config.devices()
    kinds = "+".join(sorted({device.kind for device in topology.devices}))
    return f"{topology.num_devices} {kinds} devices ({topology.name})"


def _check(config: RunConfig) -> None:
    """Find bad input before any process is started or file written."""
    data = load_data(config.data, config.image_size)
    next(run_batches(config, data))
    make_model(config, data)
    for name in (config.policy, config.profile):
        if name and not Path(name).exists():
            raise SegueError(f"{name}: no such file")


def _make_folder(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise SegueError(
            f"--run-dir {folder}: not empty; give another folder, or continue that run with `segue run --resume {folder}`"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SegueError(f"--run-dir {folder}: cannot be made: {error.strerror}") from error


def _say_resume(folder: Path) -> None:
    if has_checkpoint(folder):
        print(f"segue: everything is saved; go on with: segue run --resume {folder}", file=sys.stderr)


@contextmanager
def _graceful_stop(folder: Path) -> Iterator[Any]:
    """On the first Ctrl-C (or SIGTERM) ask the run to stop at the next step; on the second, or after a while, stop it."""
    asked: list[float] = []

    def handle(number: int, frame: Any) -> None:
        del number, frame
        if asked:
            raise KeyboardInterrupt
        asked.append(time.monotonic())
        (folder / STOP).touch()
        print("\nsegue: stopping after this step; Ctrl-C again stops at once", file=sys.stderr)

    def poll() -> None:
        if asked and time.monotonic() - asked[0] > GRACE_S:
            raise KeyboardInterrupt

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield poll
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def report(folder: Path, overruns: int = 0, loop_s: float | None = None) -> dict[str, Any]:
    """Write `summary.json`, `report.html` and the picture of a run folder, and print its table."""
    run = Run.load(folder)
    if not run.losses:
        raise SegueError(f"{folder}: no step has been finished")
    summary = summarize(run, overruns, loop_s)
    _add_told(run, summary)
    write_json(folder / "summary.json", summary)
    write_report(folder, _record(run, summary, folder))
    print(table(summary))
    print(f"\n{folder}/report.html shows the run; {folder}/decisions.jsonl says which op moved where, and why.")
    return summary


def _add_told(run: Run, summary: dict[str, Any]) -> None:
    """For every slow-down, what the agent would reach had it been told of it from the start (simulated)."""
    if not run.config.agent or len(summary["acts"]) < 2:
        return
    request = Request(
        clock=run.clock(run.config.steps),
        start=run.start,
        move_seconds=np.zeros(run.graph.num_ops),
        pause_s=0.0,
        horizon_steps=1,
        evaluations=run.config.evaluations,
        seed=run.config.seed,
        policy_path=run.config.policy,
    )
    summary["acts"][-1]["told_s"] = answer(request).predicted_step_time_s


def table(summary: dict[str, Any]) -> str:
    """The table at the end of a run."""
    kind = summary["device_kind"]
    rows: list[tuple[str, str]] = [("devices", f"{kind} ({len(summary['busy_share_end'])})")]
    for act in summary["acts"]:
        rows.append((f"step time, after {act['name']}", _spread(act["before_s"])))
        if act["after_s"] != act["before_s"]:
            change = act["after_s"][1] / act["before_s"][1] - 1
            rows.append(("  after the agent's moves", f"{_spread(act['after_s'])}  ({change:+.0%})"))
        if act["told_s"]:
            ratio = act["after_s"][1] / act["told_s"] - 1
            rows.append(
                ("  if told from the start (simulated)", f"{act['told_s'] * 1e3:.0f} ms  (reached: {ratio:+.0%})")
            )
    rows += [
        ("runtime", f"{summary['runtime_s']:.1f} s in {summary['steps']} steps"),
        (
            "runtime saved (estimated)",
            f"{summary['runtime_saved_estimate']:.0%} of {summary['runtime_without_agent_estimate_s']:.1f} s",
        ),
        ("ops moved", f"{summary['ops_moved_share']:.0%} of {summary['ops_total']}"),
        ("moves", f"{summary['moves']} ({summary['moves_taken_back']} taken back)"),
        ("bytes moved", f"{summary['bytes_moved'] / 2**20:.1f} MiB"),
        ("migration pause", f"{summary['pause_s_total']:.2f} s in all"),
        ("loss, first and last", f"{summary['loss_first']:.4f}, {summary['loss_last']:.4f}"),
        ("busy share at the start", _shares(summary["busy_share_start"])),
        ("busy share at the end", _shares(summary["busy_share_end"])),
        ("idle", f"{summary['idle_device_s'] / summary['device_s']:.0%} of {summary['device_s']:.0f} device seconds"),
    ]
    if "emulated" in kind:
        rows.append(("instructions late (emulated)", str(summary["overruns"])))
    if not summary["agent"]:
        rows = [row for row in rows if not row[0].startswith("runtime saved")]
    return format_table(rows, ("", f"{summary['model']} on {summary['data']} ({kind})"))


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{values[1] * 1e3:.0f} ms  [{values[0] * 1e3:.0f}, {values[2] * 1e3:.0f}]"


def _shares(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items())


def _record(run: Run, summary: dict[str, Any], folder: Path) -> RunRecord:
    moves = [
        Event(m["step"], f"{m['ops_moved']} ops moved" + (" back" if m["action"] == "take back" else ""))
        for m in run.moves
    ]
    slow = [Event(e.step, f"{e.device} {e.factor:g}x slower", "slow") for e in run.config.slow]
    traces: dict[str, list[Span]] = {}
    for name in ("trace-start.json", "trace-end.json"):
        if (folder / name).exists():
            traces = read_traces(folder / name)
    predicted = next((spans for title, spans in traces.items() if title.startswith("predicted")), [])
    measured = next((spans for title, spans in traces.items() if title.startswith("run")), [])
    names = [device.name for device in run.topology.devices]
    return RunRecord(
        title=f"{run.config.model} on {run.topology.name}",
        device_kind="emulated" if "emulated" in summary["device_kind"] else "measured",
        step_times_s=run.times.tolist(),
        events=sorted(moves + slow, key=lambda event: event.step),
        graph=run.graph,
        topology=run.topology,
        before=run.start,
        after=run.end,
        busy_before=np.array([summary["busy_share_start"][name] for name in names]),
        busy_after=np.array([summary["busy_share_end"][name] for name in names]),
        summary={key: value for key, value in summary.items() if not isinstance(value, list | dict)},
        decisions=[{k: v for k, v in row.items() if k not in ("moves", "speeds")} for row in run.decisions],
        predicted=predicted,
        measured=measured,
    )


def check_losses(config: RunConfig) -> int:
    """Train the same steps in plain PyTorch and compare; prints the largest difference, returns 0 if it is small."""
    # As many threads as a worker has: the kernels' order of additions depends on it.
    torch.set_num_threads(max(1, len(config.devices().devices[0].cores)))
    data = load_data(config.data, config.image_size)
    model = make_model(config, data)
    size = -(-config.batch_size // config.microbatches)
    steps = run_batches(config, data)
    losses = plain_losses(model, make_optimizer(config, model), nn.CrossEntropyLoss(), steps, size)
    bar = tqdm(losses, total=config.steps, unit="step", desc="plain PyTorch", dynamic_ncols=True)
    expected = np.array(list(bar))
    got = np.array([row["loss"] for row in Run.load(Path(config.run_dir)).losses])
    difference = np.abs(got - expected) / np.maximum(1e-8, np.abs(expected))
    equal = int((got == expected).sum())
    good = len(got) == len(expected) and float(difference.max()) <= VERIFY_TOLERANCE
    print(
        f"segue: {equal} of {len(expected)} losses equal plain PyTorch's bit for bit; largest relative difference "
        f"{difference.max():.2g} at step {int(difference.argmax())}: {'good' if good else 'NOT the same training'}"
    )
    return 0 if good else 1


def resume_run(folder: str, *, verify: bool = False, retry_s: float | None = None, deadline_s: float = math.inf) -> int:
    """Go on with a run from its last checkpoint; options as of `start_run`.

    Raises:
        SegueError: if there is nothing to go on with.
    """
    config = RunConfig.load(folder)
    if not has_checkpoint(Path(folder)):
        raise SegueError(f"--resume {folder}: no checkpoint there; start the run again with another --run-dir")
    return start_run(config, resume=True, verify=verify, retry_s=retry_s, deadline_s=deadline_s)
