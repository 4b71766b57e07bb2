"""How time passes on each kind of device."""

import os
import time
from typing import NamedTuple

import torch

from ..topology import Device
from .host_memory import keep_freed_memory

OVERRUN_S = 5e-4
"""An emulated instruction that ends this much later than declared counts as an overrun."""


class Interval(NamedTuple):
    """When an instruction ran, in seconds since the step's origin."""

    start_s: float
    end_s: float


class Pace:
    """CPU cores, where an instruction takes what it takes; and what other devices' paces share.

    Attributes:
        torch_device: where the device's tensors live.
        overruns: instructions that took longer than declared.
    """

    def __init__(self, device: Device):
        self.torch_device = torch.device("cpu")
        self.overruns = 0
        keep_freed_memory()
        if device.cores:
            os.sched_setaffinity(0, device.cores)
            torch.set_num_threads(len(device.cores))

    def start_step(self, origin: float) -> None:
        """Begin a step at `origin`, a reading of `time.monotonic`."""
        self._origin = origin
        self._intervals: list[Interval] = []

    def begin(self, arrival: float) -> None:
        """Begin an instruction, not before `arrival` (a reading of `time.monotonic`)."""
        del arrival  # what has been received has arrived
        self._start = time.monotonic()

    def end(self, declared_s: float) -> float:
        """End it; returns the time at which its results are ready to be sent."""
        del declared_s  # nothing is declared for a real device
        now = time.monotonic()
        self._intervals.append(Interval(self._start - self._origin, now - self._origin))
        return now

    def intervals(self) -> list[Interval]:
        """Every instruction since `start_step`."""
        return self._intervals


class EmulatedPace(Pace):
    """A declared pace: the work is done for real, then the worker sleeps for what is left of the declared time.

    The device keeps a clock of its own that declared times and arrivals advance; real time is made to follow it, so that the
    lateness of a sleep does not add up over instructions. Work that takes longer than declared pushes the clock on and is
    counted as an overrun.
    """

    def __init__(self, device: Device):
        super().__init__(device)
        torch.set_num_threads(1)

    def start_step(self, origin: float) -> None:
        """See `Pace`."""
        super().start_step(origin)
        self._clock = origin

    def begin(self, arrival: float) -> None:
        """See `Pace`."""
        self._clock = max(self._clock, arrival)
        _sleep_until(self._clock)
        self._start = self._clock

    def end(self, declared_s: float) -> float:
        """See `Pace`."""
        self._clock = self._start + declared_s
        now = time.monotonic()
        if now > self._clock + OVERRUN_S:
            self.overruns += 1
            self._clock = now
        _sleep_until(self._clock)
        self._intervals.append(Interval(self._start - self._origin, self._clock - self._origin))
        return self._clock


class CudaPace(Pace):
    """A GPU: instructions are queued, and events on its stream say when they ran."""

    def __init__(self, device: Device):
        super().__init__(device)
        self.torch_device = torch.device("cuda", device.index)
        torch.cuda.set_device(self.torch_device)

    def start_step(self, origin: float) -> None:
        """See `Pace`."""
        self._delay = time.monotonic() - origin
        self._first = self._event()
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def begin(self, arrival: float) -> None:
        """See `Pace`; what has been received has arrived."""
        del arrival
        self._start = self._event()

    def end(self, declared_s: float) -> float:
        """See `Pace`; nothing is declared for a real device."""
        del declared_s
        self._events.append((self._start, self._event()))
        return time.monotonic()

    def intervals(self) -> list[Interval]:
        """See `Pace`; waits for the GPU."""
        torch.cuda.synchronize(self.torch_device)
        return [
            Interval(*(self._delay + self._first.elapsed_time(event) / 1e3 for event in pair)) for pair in self._events
        ]


def _sleep_until(moment: float) -> None:
    left = moment - time.monotonic()
    if left > 0:
        time.sleep(left)


def make_pace(device: Device) -> Pace:
    """The pace of a device's kind."""
    if device.kind == "cuda":
        return CudaPace(device)
    return EmulatedPace(device) if device.kind == "emulated" else Pace(device)
