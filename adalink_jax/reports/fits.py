"""Trends and power laws over model size.

Each size has a variance over the seeds of its own: the noise of training differs by size, and with one variance for all, 95 %
intervals contained the truth in 77 to 98 % of the cases. A trend's interval is that of a weighted sum of means; a fit's is the
percentiles over draws of each mean from its own Student's distribution, which is wider than needed if all sizes are equally noisy.
Neither covers what another base of a size would change: the seeds of a size share one base.
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping

import numpy as np
from scipy import optimize, stats

from adalink_jax.reports.statistics import CONFIDENCE, Estimate, variance, weighted

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
    return weighted((x - x.mean()) / ((x - x.mean()) ** 2).sum(), [list(seeds.values()) for seeds in values.values()])


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
        start = [np.clip(y[0], 1e-6, 10.0), 0.2, *([0.0] if offset else [])]
        bottom, top = [0.0, -5.0, *([0.0] if offset else [])], [10.0, 5.0, *([max(y.min(), 1e-9)] if offset else [])]
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", optimize.OptimizeWarning)  # about the covariance, which is not used
            parameters = optimize.curve_fit(law, n / scale, y, start, bounds=(bottom, top), maxfev=20_000)[0]
        return np.array([*parameters, *([] if offset else [0.0])])

    def estimates(y: np.ndarray) -> np.ndarray:
        """The exponent, and the predicted error if there is a target."""
        a, b, c = fit(y)
        return np.array([b] if target is None else [b, a * target**-b + c])

    groups = [list(seeds.values()) for seeds in errors.values()]
    means = np.array([np.mean(values) for values in groups])
    deviations = np.sqrt([variance(values) / len(values) for values in groups])
    a, b, c = fit(means)
    ends = np.full((2, len(estimates(means))), math.nan)
    if deviations.sum() > 0:
        # each distribution's quantiles in random order, which vary less from seed to seed than random draws
        order = np.random.default_rng(SEED).permuted(np.tile(np.arange(DRAWS), (len(groups), 1)), axis=1).T
        t = stats.t.ppf((order + 0.5) / DRAWS, [len(values) - 1 for values in groups])
        draws = [estimates(np.maximum(means + deviations * row, 1e-6)) for row in t]
        tail = 100 * (1 - CONFIDENCE) / 2
        ends = np.percentile(draws, [tail, 100 - tail], axis=0)
    exponent, *predicted = (
        Estimate(float(value), float(low), float(high)) for value, low, high in zip(estimates(means), *ends)
    )
    return PowerLaw(float(a * scale**b), float(b), float(c), exponent, predicted[0] if predicted else None)
