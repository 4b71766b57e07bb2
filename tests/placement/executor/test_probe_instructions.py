from types import SimpleNamespace

import numpy as np
import pytest

from segue.placement.executor.probe_instructions import _Chain


class Steps:
    """Stands for an executor whose steps take given seconds, the last of them from then on."""

    def __init__(self, *seconds: float):
        self.seconds = seconds
        self.done = 0

    @property
    def report(self) -> SimpleNamespace:
        return SimpleNamespace(step_time_s=self.seconds[min(self.done, len(self.seconds)) - 1])

    def apply(self, placement: object) -> None:
        pass

    def step(self, batch: object) -> None:
        self.done += 1


@pytest.mark.parametrize(
    ("seconds", "steps", "median"),
    [((0.01,), 30, 0.01), ((9.0,), 4, 9.0), ((0.3, 0.2, 0.11), 25, 0.11), ((2.0, 1.5), 4, 1.5)],
)
def test_few_steps_are_waited_for_where_links_are_slow(seconds: tuple[float, ...], steps: int, median: float) -> None:
    chain = object.__new__(_Chain)
    chain.microbatches = 1
    chain.executor, chain.batch = Steps(*seconds), None  # pyright: ignore[reportAttributeAccessIssue]
    assert chain._measure(np.zeros(3, np.int64)) == pytest.approx(median)
    assert chain.executor.done == steps  # pyright: ignore[reportAttributeAccessIssue]
