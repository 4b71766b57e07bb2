import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segue.agent.corrections import MOST, Readings, expected, regress, surprise

SPREAD = np.array([0.35, 0.35, 0.35, 1.0])
DEVICE = 3


def readings(seconds: list[list[float]], factors: NDArray[np.float64] | None = None) -> Readings:
    """Sums of three groups on one device, as given factors would make them."""
    rows = len(seconds)
    believed = np.hstack([np.array(seconds, float), np.zeros((rows, 1))])
    empty = Readings(
        believed, np.full(rows, DEVICE), np.zeros(rows), np.full(rows, 0.1), np.ones(rows), np.full(rows, 0.01)
    )
    return empty._replace(measured=expected(empty, np.ones(4) if factors is None else factors))


def test_without_readings_nothing_is_believed_but_the_prior() -> None:
    posterior = regress(SPREAD, [])
    assert posterior.factors() == pytest.approx(np.ones(4))
    assert np.diag(posterior.covariance) == pytest.approx(SPREAD**2)


def test_readings_of_each_group_find_its_factor_up_to_the_devices() -> None:
    truth = np.array([0.7, 1.0, 1.4, 3.0])
    seen = readings([[1, 0, 0], [0, 1, 0], [0, 0, 1]], truth)
    found = regress(SPREAD, [seen]).factors()
    assert found[:3] * found[DEVICE] == pytest.approx(truth[:3] * truth[DEVICE], rel=0.01)
    # What all groups have in common is the device's doing.
    assert found[DEVICE] == pytest.approx(3.0, rel=0.1)


def test_a_sum_leaves_its_parts_uncertain_and_their_sum_certain() -> None:
    seen = readings([[1, 1, 0]])
    covariance = regress(SPREAD, [seen]).covariance
    together = np.array([0.5, 0.5, 0.0, 1.0])
    apart = np.array([1.0, -1.0, 0.0, 0.0])
    assert together @ covariance @ together < 0.02**2
    assert apart @ covariance @ apart == pytest.approx(2 * 0.35**2)


def test_a_reading_that_fits_nothing_is_a_surprise() -> None:
    seen = readings([[1, 2, 3]])
    posterior = regress(SPREAD, [seen])
    slow = seen._replace(measured=1.5 * seen.measured)
    assert abs(surprise(seen, posterior)[0]) < 0.1
    assert surprise(slow, posterior)[0] > 10
    assert surprise(slow, regress(SPREAD, []))[0] < 1


positive = st.floats(1e-6, 1e6)
rows = st.lists(st.lists(st.floats(0.01, 10.0), min_size=3, max_size=3), min_size=1, max_size=6)


@settings(deadline=None, max_examples=60)
@given(rows, st.lists(positive, min_size=6, max_size=6))
def test_factors_stay_positive_and_bounded_whatever_is_measured(
    seconds: list[list[float]], measured: list[float]
) -> None:
    seen = readings(seconds)._replace(measured=np.array(measured[: len(seconds)]))
    found = regress(SPREAD, [seen])
    assert (found.factors() >= 1 / MOST - 1e-12).all()
    assert (found.factors() <= MOST + 1e-9).all()
    assert np.linalg.eigvalsh(found.covariance).min() > 0


@settings(deadline=None, max_examples=60)
@given(rows, st.lists(st.floats(0.5, 1.5), min_size=4, max_size=4), st.randoms(use_true_random=False))
def test_the_order_of_readings_does_not_matter(seconds: list[list[float]], factors: list[float], random) -> None:
    parts = [readings([row], np.array(factors)) for row in seconds]
    shuffled = parts.copy()
    random.shuffle(shuffled)
    one, other = regress(SPREAD, parts), regress(SPREAD, shuffled)
    assert one.mean == pytest.approx(other.mean, abs=1e-8)
    assert one.covariance == pytest.approx(other.covariance, abs=1e-10)


@settings(deadline=None, max_examples=60)
@given(rows, st.lists(st.floats(0.5, 1.5), min_size=4, max_size=4))
def test_what_was_measured_without_noise_is_predicted_better_than_before(
    seconds: list[list[float]], factors: list[float]
) -> None:
    seen = readings(seconds, np.array(factors))
    after = np.log(expected(seen, regress(SPREAD, [seen]).factors()) / seen.measured)
    before = np.log(expected(seen, np.ones(4)) / seen.measured)
    assert np.linalg.norm(after) <= np.linalg.norm(before) + 1e-9


def test_draws_scatter_as_the_covariance_says() -> None:
    posterior = regress(SPREAD, [readings([[1, 0, 0]])])
    rng = np.random.default_rng(0)
    draws = np.log([posterior.sample(rng) for _ in range(4000)])
    assert np.cov(draws.T) == pytest.approx(posterior.covariance, abs=0.06)
