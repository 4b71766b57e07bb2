"""`python -m segue.placement.executor.script`: a worker of `launch_script`; runs the user's script as `python` would."""

import os
import runpy
import sys
from pathlib import Path

import torch.distributed as dist

from .failures import noting_failures
from .launch import die_with


def main(folder: str, parent: int, script: str, arguments: list[str]) -> None:
    """Run a script.

    Args:
        folder: where notes for the launching process go.
        parent: the launching process; the worker ends with it.
        script: the user's file.
        arguments: its arguments.
    """
    die_with(parent)
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).resolve().parent)
    with noting_failures(Path(folder), int(os.environ["RANK"]), script):
        runpy.run_path(script, run_name="__main__")
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:])
