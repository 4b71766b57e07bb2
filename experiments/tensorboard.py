"""TensorBoard curves of a run: loss and step time, and of each device how busy and how full it is."""

from collections.abc import Sequence
from pathlib import Path

from ..placement.clock import StepReport
from ..placement.errors import SegueError

FOLDER = "tensorboard"


class Board:
    """Writes a scalar a step into `tensorboard/` of a run folder, for `tensorboard --logdir RUN_DIR`.

    Args:
        run_dir: the run folder.
        devices: their names.
        first_step: what an earlier part of the run wrote from this step on is hidden.

    Raises:
        SegueError: if tensorboard is not installed.
    """

    def __init__(self, run_dir: Path, devices: Sequence[str], first_step: int = 0):
        check_tensorboard()
        from torch.utils.tensorboard.writer import SummaryWriter

        self.devices = tuple(devices)
        self._writer = SummaryWriter(str(run_dir / FOLDER), purge_step=first_step or None)

    def step(self, step: int, loss: float, report: StepReport) -> None:
        """Add one step's scalars; seconds, and shares of 1."""
        self._writer.add_scalar("loss", loss, step)
        self._writer.add_scalar("step_time_s", report.step_time_s, step)
        columns = {
            "busy_s": report.busy_s,
            "waiting_s": report.waiting_s,
            "transfer_s": report.transfer_s,
            "memory_share": report.peak_bytes / report.capacity_bytes,
        }
        for name, values in columns.items():
            for device, value in zip(self.devices, values.tolist(), strict=True):
                self._writer.add_scalar(f"{name}/{device}", value, step)

    def close(self) -> None:
        """Write what is still in memory."""
        self._writer.close()


def check_tensorboard() -> None:
    """Check that curves can be written.

    Raises:
        SegueError: naming the extra that is missing.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise SegueError(f"--tensorboard: {error}; install it with: pip install 'segue[tensorboard]'") from error
