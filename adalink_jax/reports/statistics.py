"""Means, differences and weighted sums of means over a few seeds, with their intervals.

Intervals are 95 % confidence intervals from Student's t distribution: with so few seeds, resampling would give intervals that
miss far more often. They take seeds as independent and scores as about normal, and cover what another seed would change, not
another base, tuning or test set. Seeds that all agree give no interval: a score is a count, and noise below one count shows as
none (with three seeds and a deviation of a third of a count, a point for an interval would contain the mean in half of the cases).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
INCONCLUSIVE = "inconclusive"


def variance(values: Sequence[float]) -> float:
    """The variance over the seeds: NaN of a single seed, 0 if all agree up to rounding."""
    array = np.asarray(values, float)
    if len(array) < 2:
        return math.nan
    return float(array.var(ddof=1)) if np.ptp(array) > 1e-9 * max(1.0, np.abs(array).max()) else 0.0


def reach(weights: Sequence[float], groups: Sequence[Sequence[float]]) -> float:
    """Half the width of the confidence interval of a weighted sum of the groups' means.

    Each group has a variance of its own. The degrees of freedom are Welch's (1947) and Satterthwaite's (1946), with each group
    counted as the one with the fewest seeds, rounded down: without this an interval over groups of two and three seeds contains
    the truth in as few as 89 % of the cases if the smallest group is the noisiest.

    Args:
      weights: of the means.
      groups: the seeds' values of each group.

    Returns:
      NaN if a group has a single seed, or if the seeds of every group agree.
    """
    parts = np.array([w**2 * variance(values) / len(values) for w, values in zip(weights, groups, strict=True)])
    if not parts.sum() > 0:
        return math.nan
    fewest = min(map(len, groups)) - 1
    freedom = max(fewest, math.floor(fewest * parts.sum() ** 2 / (parts**2).sum()))
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * np.sqrt(parts.sum()))


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


def weighted(weights: Sequence[float], groups: Sequence[Sequence[float]], signed: bool = True) -> Estimate:
    """A weighted sum of the groups' means, with its interval (see `reach`)."""
    means = [np.clip(np.mean(values), min(values), max(values)) for values in groups]  # exact if all are equal
    value, half = float(np.dot(weights, means)), reach(weights, groups)
    return Estimate(value, value - half, value + half, signed)


def mean(values: Sequence[float], signed: bool = False) -> Estimate:
    """The mean over the seeds, with Student's interval; without one of a single seed, or if all seeds agree."""
    return weighted([1.0], [values], signed)


def difference(scores: Mapping[int, float], reference: Mapping[int, float]) -> Estimate:
    """The mean of `scores` less `reference`, paired by seed."""
    return mean([score - reference[seed] for seed, score in scores.items() if seed in reference], signed=True)
