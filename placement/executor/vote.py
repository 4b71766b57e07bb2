"""`Vote`: workers that agree to go on, or to give up together."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist


class Vote:
    """One worker's first failure, and the workers' common decision to give up.

    What a worker does between two collectives may fail on it alone. The failure is kept, the worker goes on to the next
    collective as the others do, and there all learn of it.

    Args:
        error: what is raised, on every worker, with the failures of all of them as its message.
    """

    def __init__(self, error: type[Exception]):
        self.error = error
        self.failure = ""

    @contextmanager
    def attempt(self, doing: str) -> Iterator[None]:
        """Keep the first failure of such blocks, and go on after it."""
        try:
            yield
        except Exception as error:
            lines = " ".join(str(error).splitlines())
            self.failure = self.failure or f"{lines} ({type(error).__name__} while {doing})"

    def settle(self) -> None:
        """Agree, by one small collective, whether to go on; raises `error` if any worker has failed."""
        failed = torch.tensor([int(bool(self.failure))])
        dist.all_reduce(failed, dist.ReduceOp.MAX)
        if failed.item():
            self.gather(None)

    def gather(self, value: Any) -> list[Any]:
        """Every worker's value, if none has failed; raises `error` otherwise."""
        votes: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(votes, (self.failure, value))
        failures = [failure for failure, _ in votes]
        if any(failures):
            common = failures[0] if len(set(failures)) == 1 else ""
            each = (f"worker {rank}: {failure}" for rank, failure in enumerate(failures) if failure)
            raise self.error(common or "; ".join(each))
        return [value for _, value in votes]
