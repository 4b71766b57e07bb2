import numpy as np

from segue.placement.move_cost import MoveCost, free_of_charge


def test_what_moves_is_paid_for_and_the_pause_once():
    cost = MoveCost(np.array([0, 0, 1, 1]), np.array([1.0, 2.0, 4.0, 8.0]), 0.5)
    assert cost.of(np.array([0, 0, 1, 1])) == 0.0
    assert cost.of(np.array([1, 0, 1, 1])) == 1.5
    assert cost.of(np.array([1, 0, 0, 2])) == 13.5


def test_free_of_charge_costs_nothing():
    assert free_of_charge(np.zeros(3, np.int64)).of(np.array([1, 2, 0])) == 0.0
