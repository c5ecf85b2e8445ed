"""Means, paired differences and their intervals, over a few seeds.

Intervals are 95 % confidence intervals from Student's t distribution: with so few seeds, resampling would give intervals that
miss far more often.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
INCONCLUSIVE = "inconclusive"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The confidence interval of the mean of at least two values; a point if all are equal."""
    array = np.asarray(values, float)
    if np.ptp(array) == 0:
        return float(array[0]), float(array[0])
    low, high = stats.t.interval(CONFIDENCE, len(array) - 1, array.mean(), stats.sem(array))
    return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number and its interval.

    Attributes:
      value: the number.
      low, high: ends of the interval; NaN without one.
      signed: whether it is written with a sign, as a difference is.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    signed: bool = True

    def __str__(self) -> str:
        form = "{:+.3f}" if self.signed else "{:.3f}"
        ends = "" if math.isnan(self.low) else f" [{form.format(self.low)}, {form.format(self.high)}]"
        return form.format(self.value) + ends

    @property
    def sign(self) -> int:
        """1 or -1 if the interval excludes zero, else 0."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0

    def verdict(self, above: str, below: str) -> str:
        """`above` or `below` if the number is distinguishable from zero, else "inconclusive"."""
        return {1: above, -1: below, 0: INCONCLUSIVE}[self.sign]


def mean(values: Sequence[float], signed: bool = False) -> Estimate:
    """The mean over the seeds; without an interval if there is only one."""
    low, high = interval(values) if len(values) > 1 else (math.nan, math.nan)
    value = low if low == high else float(np.mean(values))  # np.mean of equal values may differ in the last bit
    return Estimate(value, low, high, signed)


def difference(scores: Mapping[int, float], reference: Mapping[int, float]) -> Estimate:
    """The mean of `scores` less `reference`, paired by seed."""
    return mean([score - reference[seed] for seed, score in scores.items() if seed in reference], signed=True)


def pooled_means(values: Mapping[str, Mapping[int, float]]) -> tuple[np.ndarray, np.ndarray, int]:
    """Means over the seeds, with standard errors from one variance for all groups.

    Args:
      values: group -> seed -> value.

    Returns:
      The mean of each group, its standard error, and the degrees of freedom of the variance.
    """
    columns = [np.array(list(seeds.values())) for seeds in values.values()]
    freedom = sum(len(column) - 1 for column in columns)
    variance = sum(((column - column.mean()) ** 2).sum() for column in columns) / max(freedom, 1)
    errors = np.sqrt([variance / len(column) for column in columns])
    return np.array([column.mean() for column in columns]), errors, freedom
