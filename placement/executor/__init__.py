"""Runs a schedule on real devices and moves operators while it trains."""

from .checkpoint import Checkpoint, CheckpointFailed, load_checkpoint, plain_state, save_checkpoint
from .elastic import run_elastic
from .executor import Executor
from .failures import WorkerFailed
from .launch import join, launch, launch_script
from .measured_clock import MeasuredClock
from .migration import MoveFailed, MoveReport
from .probe import probe
from .run_topology import topology_of_run
from .runner import OutOfMemory

__all__ = [
    "Checkpoint",
    "CheckpointFailed",
    "Executor",
    "MeasuredClock",
    "MoveFailed",
    "MoveReport",
    "OutOfMemory",
    "WorkerFailed",
    "join",
    "launch",
    "launch_script",
    "load_checkpoint",
    "plain_state",
    "probe",
    "run_elastic",
    "save_checkpoint",
    "topology_of_run",
]
