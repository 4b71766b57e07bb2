"""Runs a schedule on real devices and moves operators while it trains."""

from .executor import Executor
from .launch import WorkerFailed, join, launch
from .measured_clock import MeasuredClock
from .migration import MoveFailed, MoveReport
from .probe import probe
from .runner import OutOfMemory

__all__ = [
    "Executor",
    "MeasuredClock",
    "MoveFailed",
    "MoveReport",
    "OutOfMemory",
    "WorkerFailed",
    "join",
    "launch",
    "probe",
]
