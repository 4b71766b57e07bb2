"""`Corrections`: by what factors costs differ from what was believed, a Bayesian regression on measured seconds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# No factor is believed to be larger than this, or smaller than its inverse.
MOST = 50.0
_ITERATIONS = 12
_CLOSE = 1e-10


class Readings(NamedTuple):
    """Measured seconds, each the sum of parts whose factors are to be found (`r` readings, `k` factors).

    A reading should be `fixed + factor[shared] * sum over k of seconds[k] * factor[k]`, or without the shared factor where
    `shared` is -1.

    Attributes:
        seconds: believed seconds of each factor's part, `float64[r, k]`.
        shared: the factor that all parts of a reading have in common, `int64[r]`.
        alone: believed seconds that only the shared factor multiplies, `float64[r]`.
        fixed: seconds that are known.
        measured: what was measured, > 0.
        noise: its standard deviation, relative.
    """

    seconds: Floats
    shared: Ints
    alone: Floats
    fixed: Floats
    measured: Floats
    noise: Floats


class Posterior(NamedTuple):
    """Logarithms of the factors, normally distributed: `mean` `float64[k]`, `covariance` `float64[k, k]`."""

    mean: Floats
    covariance: Floats

    def sample(self, rng: np.random.Generator) -> Floats:
        """Factors drawn from it, `float64[k]`."""
        root = np.linalg.cholesky(self.covariance + 1e-12 * np.eye(len(self.mean)))
        return bounded(self.mean + root @ rng.standard_normal(len(self.mean)))

    def factors(self) -> Floats:
        """The likeliest factors, `float64[k]`."""
        return bounded(self.mean)


def bounded(logarithms: Floats) -> Floats:
    """Factors within `[1 / MOST, MOST]` from their logarithms."""
    return np.exp(np.clip(logarithms, -np.log(MOST), np.log(MOST)))


def expected(readings: Readings, factors: Floats) -> Floats:
    """Seconds that the readings should have under given factors, `float64[r]`."""
    return readings.fixed + _shared(readings, factors) * (readings.alone + readings.seconds @ factors)


def regress(spread: Floats, parts: Sequence[Readings]) -> Posterior:
    """What the readings say about the factors.

    The logarithm of each factor is a priori normal around 0 with the given spread, and that of each reading normal around
    what is expected of it. Ridge regression in closed form, linearised anew at its own answer until that stays (Gauss and
    Newton's method); the covariance is the linear one there.

    Args:
        spread: standard deviation of each factor's logarithm, `float64[k]`.
        parts: readings; their order does not matter. They may know of the first factors only.
    """
    count = len(spread)
    mean, precision = np.zeros(count), np.diag(1.0 / spread**2)
    if not parts:
        return Posterior(mean, np.diag(spread**2))
    padded = [
        part._replace(seconds=np.pad(part.seconds, ((0, 0), (0, count - part.seconds.shape[1])))) for part in parts
    ]
    readings = Readings(*(np.concatenate(columns) for columns in zip(*padded, strict=True)))
    weight = 1.0 / readings.noise**2
    for _ in range(_ITERATIONS):
        slope, residual = _linearised(readings, mean)
        weighted = slope.T * weight
        matrix = precision + weighted @ slope
        step = np.linalg.solve(matrix, weighted @ (residual + slope @ mean)) - mean
        mean = np.clip(mean + np.clip(step, -1.0, 1.0), -np.log(MOST), np.log(MOST))
        if np.abs(step).max() < _CLOSE:
            break
    slope, _ = _linearised(readings, mean)
    return Posterior(mean, np.linalg.inv(precision + (slope.T * weight) @ slope).astype(np.float64))


def surprise(readings: Readings, posterior: Posterior) -> Floats:
    """How many standard deviations each reading is off what was to be expected, `float64[r]`, positive if longer."""
    slope, residual = _linearised(readings, posterior.mean)
    variance = np.einsum("rk,kl,rl->r", slope, posterior.covariance, slope) + readings.noise**2
    return residual / np.sqrt(variance)


def _shared(readings: Readings, factors: Floats) -> Floats:
    return np.append(factors, 1.0)[readings.shared]


def _linearised(readings: Readings, mean: Floats) -> tuple[Floats, Floats]:
    """Slopes `float64[r, k]` of the logarithms of what is expected, and the residuals of what was measured, `float64[r]`."""
    factors = np.exp(mean)
    total = expected(readings, factors)
    slope = readings.seconds * factors * _shared(readings, factors)[:, None] / total[:, None]
    rows = np.flatnonzero(readings.shared >= 0)
    slope[rows, readings.shared[rows]] += ((total - readings.fixed) / total)[rows]
    return slope, np.log(readings.measured / total)
