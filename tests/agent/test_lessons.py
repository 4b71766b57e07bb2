import multiprocessing

import numpy as np
import pytest
import torch

from segue.agent.imitation import ImitationSettings
from segue.agent.lessons import Teachers
from segue.agent.network import PlacementNetwork
from segue.agent.teacher import TeacherSettings
from segue.env import ScenarioSampler

TEACHER = TeacherSettings(evaluations=40, snapshots=(1, 20), perturbations=(1,), wanderings=(1,), moves=16)
SETTINGS = ImitationSettings(2, 5, 1, 16, max_groups=(12,), own_states=2, teacher=TEACHER)
SAMPLER = ScenarioSampler(3, 20)


def taught(workers, index):
    with Teachers(SAMPLER, SETTINGS, 0, workers) as teachers:
        return list(teachers.samples(PlacementNetwork(16, 1), index))


def test_several_processes_teach_what_one_does():
    for index in (0, 1):
        torch.manual_seed(3)
        alone = taught(1, index)
        torch.manual_seed(3)
        together = taught(2, index)
        assert len(alone) == len(together) > 5 * (3 + index)
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one.target, other.target)
            for key, value in one.observation.items():
                np.testing.assert_array_equal(value, other.observation[key])


def interrupted():
    with Teachers(SAMPLER, SETTINGS, 0, 2) as teachers:
        next(teachers.samples(PlacementNetwork(16, 1), 0))
        raise KeyboardInterrupt


def test_no_process_is_left_when_a_training_is_interrupted():
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not multiprocessing.active_children()
