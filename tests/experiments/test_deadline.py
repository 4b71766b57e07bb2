import math
import time

import pytest

from segue.experiments.deadline import RESERVE_S, Deadline, parse_duration
from segue.placement.errors import SegueError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90.0),
        ("90s", 90.0),
        ("45m", 2700.0),
        ("2h30m", 9000.0),
        ("1d", 86400.0),
        ("1.5h", 5400.0),
        ("1m30", 90.0),
    ],
)
def test_times_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5s", "0", "0m", "5 m", "m", "5x", "2h30x", "nan", "inf"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(SegueError, match=r"--deadline .*expected a time"):
        parse_duration(text)


class Watch:
    """A clock that stands still until it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 1000.0
        monkeypatch.setattr(time, "time", lambda: self.now)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


def steps(watch: Watch, deadline: Deadline, *seconds: float) -> None:
    for each in seconds:
        watch.now += each
        deadline.step_done()


def test_a_run_without_a_deadline_has_time_for_all(watch: Watch) -> None:
    deadline = Deadline(math.inf)
    steps(watch, deadline, 1.0, 1e9, 1.0, 1.0, 1.0)
    assert deadline.steps_left(500) == 500
    assert not deadline.is_up
    assert deadline.warning(5, 505) is None


def test_the_steps_that_are_left_are_as_long_as_the_last_ones(watch: Watch) -> None:
    deadline = Deadline(1000.0 + RESERVE_S + 100.0)
    assert deadline.steps_left(500) == 500
    steps(watch, deadline, *[2.0] * 10)
    assert deadline.steps_left(500) == 40
    assert deadline.steps_left(30) == 30
    steps(watch, deadline, *[8.0] * 8)
    assert deadline.steps_left(500) == 2
    assert not deadline.is_up
    steps(watch, deadline, 8.0, 8.0)
    assert deadline.is_up
    assert deadline.steps_left(500) == 0


def test_a_step_that_could_be_as_long_as_the_longest_is_not_begun(watch: Watch) -> None:
    deadline = Deadline(1000.0 + RESERVE_S + 30.0)
    steps(watch, deadline, 2.0, 12.0, 2.0)
    assert not deadline.is_up
    steps(watch, deadline, 2.0, 1.0)
    assert deadline.is_up


def test_time_for_the_checkpoint_is_kept(watch: Watch) -> None:
    deadline = Deadline(1000.0 + RESERVE_S + 30.0)
    steps(watch, deadline, 1.0, 1.0)
    watch.now += 10.0
    deadline.saved(10.0)
    assert deadline.steps_left(500) == 30 - 12 - 15
    steps(watch, deadline, 1.0)
    assert deadline.pace_s == 1.0


def test_it_is_said_once_that_not_all_steps_will_be_done(watch: Watch) -> None:
    deadline = Deadline(1000.0 + RESERVE_S + 100.0)
    steps(watch, deadline, 2.0)
    assert deadline.warning(1, 500) is None
    steps(watch, deadline, 2.0, 2.0, 2.0)
    assert deadline.warning(4, 50) is None
    assert deadline.warning(4, 500) == "at 2.00 s a step the deadline comes after step 50 of 500; it will be saved then"
    assert deadline.warning(4, 500) is None
