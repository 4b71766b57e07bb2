"""What an op's passes allocate for themselves: the most at once, and what is still there afterwards."""

import json
import os
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile, record_function

Watch = Callable[[str], AbstractContextManager[Any]]


class Allocated(NamedTuple):
    """Bytes that were allocated in a watched piece of code: the most at once, and what it left behind."""

    peak: int
    kept: int


@contextmanager
def watch_memory(device: torch.device) -> Iterator[tuple[Watch, dict[str, Allocated]]]:
    """Watch what named pieces of code allocate on a device, also inside of kernels.

    Returns:
        A context manager to be put around each piece, given its name, and a dictionary of what they allocated, filled when
        the watch ends; on a device whose allocator cannot be watched (neither CPU nor CUDA) it stays empty.
    """
    found: dict[str, Allocated] = {}
    if device.type == "cuda":
        yield lambda name: _watch_cuda(name, device, found), found
        return
    # Kineto says on stderr that it starts and stops, at a level above its errors.
    os.environ.setdefault("KINETO_LOG_LEVEL", "10")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield record_function, found
    if device.type == "cpu":
        found.update(_read_trace(profiler))


@contextmanager
def _watch_cuda(name: str, device: torch.device, found: dict[str, Allocated]) -> Iterator[None]:
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield
    peak, after = torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device)
    found[name] = Allocated(peak - before, after - before)


def _read_trace(profiler: profile) -> dict[str, Allocated]:
    """What was allocated in each annotated range of a trace."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = sorted(
        (event["ts"], event["args"]["Bytes"])
        for event in events
        if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0
    )
    times = [time for time, _ in changes]
    held = [0, *accumulate(size for _, size in changes)]
    found = {}
    for event in events:
        if event.get("cat") == "user_annotation":
            first, last = bisect_left(times, event["ts"]), bisect_left(times, event["ts"] + event["dur"])
            found[event["name"]] = Allocated(max(held[first : last + 1]) - held[first], held[last] - held[first])
    return found
