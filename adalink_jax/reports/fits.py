"""Trends and power laws over model size.

Both take the variance over the seeds as equal for all sizes (pooled). A trend's interval is Student's interval of a slope; a fit's
interval is the percentiles over draws of the means from Student's distributions. Intervals are 95 % confidence intervals.
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping

import numpy as np
from scipy import optimize, stats

from adalink_jax.reports.statistics import CONFIDENCE, Estimate, pooled_means

DRAWS, SEED = 200, 0
FEWEST_SIZES = 2  # of a trend
WITH_OFFSET = 4  # sizes from which on a power law's offset is fitted
Sizes = Mapping[str, float]  # name -> parameters of the base
BySize = Mapping[str, Mapping[int, float]]  # name of a size -> seed -> value


def trend(sizes: Sizes, values: BySize) -> Estimate | None:
    """The change of `values` per tenfold of the parameters: the slope of a line over log10 of the size.

    None with fewer than `FEWEST_SIZES` sizes.
    """
    if len(values) < FEWEST_SIZES:
        return None
    x = np.log10([sizes[size] for size in values])
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()  # of the means, in the slope
    means, errors, freedom = pooled_means(values)
    slope, error = float(weights @ means), float(np.sqrt((weights**2) @ (errors**2)))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error if freedom else math.nan
    return Estimate(slope, slope - reach, slope + reach)


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """error(N) = a * N^-b + c, with c = 0 for fewer than `WITH_OFFSET` sizes.

    Attributes:
      a, b, c: the fit to the means.
      exponent: b and its interval.
      predicted: the error at the requested size, and its interval.
    """

    a: float
    b: float
    c: float
    exponent: Estimate
    predicted: Estimate | None


def power_law(sizes: Sizes, errors: BySize, at: str | None = None) -> PowerLaw | None:
    """Fits a power law of the error against the base's parameters (Kaplan et al., 2020; with an offset as Hoffmann et al., 2022).

    Args:
      sizes: parameters of each size.
      errors: size -> seed -> error.
      at: a size whose error is predicted.

    Returns:
      The fit; None with fewer than two sizes, or if a mean error is 0.
    """
    if len(errors) < 2 or min(float(np.mean(list(seeds.values()))) for seeds in errors.values()) <= 0:
        return None
    n = np.array([sizes[size] for size in errors], float)
    scale = n[0]  # for a well-conditioned fit
    offset = len(errors) >= WITH_OFFSET
    target = None if at is None else sizes[at] / scale

    def fit(y: np.ndarray) -> np.ndarray:
        law = (lambda x, a, b, c: a * x**-b + c) if offset else (lambda x, a, b: a * x**-b)
        start = [max(y[0], 1e-6), 0.2, *([0.0] if offset else [])]
        bottom, top = [0.0, -5.0, *([0.0] if offset else [])], [10.0, 5.0, *([max(y.min(), 1e-9)] if offset else [])]
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", optimize.OptimizeWarning)  # about the covariance, which is not used
            parameters = optimize.curve_fit(law, n / scale, y, start, bounds=(bottom, top), maxfev=20_000)[0]
        return np.array([*parameters, *([] if offset else [0.0])])

    def estimates(y: np.ndarray) -> np.ndarray:
        """The exponent, and the predicted error if there is a target."""
        a, b, c = fit(y)
        return np.array([b] if target is None else [b, a * target**-b + c])

    means, deviations, freedom = pooled_means(errors)
    a, b, c = fit(means)
    t = np.random.default_rng(SEED).standard_t(max(freedom, 1), (DRAWS, len(means)))
    draws = np.array([estimates(np.maximum(means + deviations * row, 1e-6)) for row in t])
    tail = 100 * (1 - CONFIDENCE) / 2
    ends = np.percentile(draws, [tail, 100 - tail], axis=0) if freedom else np.full((2, draws.shape[1]), math.nan)
    exponent, *predicted = (
        Estimate(float(value), float(low), float(high)) for value, low, high in zip(estimates(means), *ends)
    )
    return PowerLaw(float(a * scale**b), float(b), float(c), exponent, predicted[0] if predicted else None)
