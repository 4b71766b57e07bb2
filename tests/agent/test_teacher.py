import numpy as np
import pytest

from segue.agent.teacher import TeacherSettings, prepare, teach
from segue.env import ScenarioSampler

SETTINGS = TeacherSettings(evaluations=300, snapshots=(1, 50), moves=40)


def lesson_of(seed):
    rng = np.random.default_rng(seed)
    return prepare(ScenarioSampler(4, 30)(rng), 16, rng, SETTINGS), rng


@pytest.mark.parametrize("seed", range(4))
def test_the_teacher_knows_something_better_than_the_start(seed):
    lesson, _ = lesson_of(seed)
    before, after = (lesson.clock.evaluate(devices) for devices in (lesson.start, lesson.best))
    assert (after[1], after[0]) <= (before[1], before[0])
    assert np.array_equal(lesson.states[0], lesson.start)


@pytest.mark.parametrize("seed", range(4))
def test_what_a_move_is_said_to_change_is_what_it_changes(seed):
    lesson, rng = lesson_of(seed)
    sample = teach(lesson, lesson.start, rng, SETTINGS)
    group_of, clock = lesson.problem.groups.group_of, lesson.clock
    before, home = clock.evaluate(lesson.start), sample.observation["placement"].argmax(axis=1)
    for unit, device, moves, change in zip(sample.units, sample.devices, sample.moves, sample.change, strict=True):
        devices = np.where(unit[group_of] > 0, device, lesson.start)
        if moves[-1]:  # devices change places
            devices = np.where((home == device)[group_of], home[unit > 0][0], devices)
        after = clock.evaluate(devices)
        if not before[1] and not after[1]:
            assert change == pytest.approx(np.clip(np.log(after[0] / before[0]), -2, 2), abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_the_target_prefers_what_gains_most(seed):
    lesson, rng = lesson_of(seed)
    sample = teach(lesson, lesson.start, rng, TeacherSettings(evaluations=300, snapshots=(1,), agreement=0.0))
    assert sample.target.sum() == pytest.approx(1.0, abs=1e-5)
    order = np.argsort(np.append(0.0, sample.change), kind="stable")
    assert (np.diff(sample.target[order]) <= 1e-6).all()
    assert sample.value >= 0
