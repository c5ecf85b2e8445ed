"""What a study's runs say of scale: gaps paired by seed, their trend over model size, power laws, and a check of their predictions.

Intervals are of 95 %. Those of means and of paired differences are Student's over the seeds. Trends and fits take the seeds' variance as
one for all sizes (pooled): a trend's is Student's of a slope, a fit's are percentiles over draws of the means from Student's distributions.
With so few seeds, resampling them would give intervals that miss far more often.
"""

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import optimize, stats

from adalink_jax.reports.comparison_report import CONFIDENCE, interval

DRAWS, SEED = 200, 0
FEWEST_SIZES = 2  # of a trend
WITH_OFFSET = 4  # sizes from which a power law's third parameter can be told


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number and its interval.

    Attributes:
      value: the number.
      low, high: ends of the interval; NaN without one.
      signed: whether it is written with its sign, as a difference is.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    signed: bool = True

    def __str__(self):
        form = "{:+.3f}" if self.signed else "{:.3f}"
        ends = "" if math.isnan(self.low) else f" [{form.format(self.low)}, {form.format(self.high)}]"
        return form.format(self.value) + ends

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves zero out, else 0."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def mean(values: Sequence[float], signed: bool = False) -> Estimate:
    """Of values of several seeds."""
    low, high = interval(values) if len(values) > 1 else (math.nan, math.nan)
    value = low if low == high else float(np.mean(values))  # the mean of equal values may be another in the last bit
    return Estimate(value, low, high, signed)


@dataclasses.dataclass(frozen=True)
class Runs:
    """The runs of a study, with their bases' sizes.

    Attributes:
      scores: (size, regime, task, method) -> seed -> score on test.
      sizes: name -> parameters of the base, small ones first.
      metrics: task -> what its scores are.
      trained: (size, task, method) -> parameters that are trained.
    """

    scores: Mapping[tuple[str, str, str, str], Mapping[int, float]]
    sizes: Mapping[str, int]
    metrics: Mapping[str, str]
    trained: Mapping[tuple[str, str, str], int]

    @classmethod
    def of(cls, results: Sequence[Mapping]) -> "Runs":
        """From results that were kept (see `study_folder`)."""
        scores, sizes, metrics, trained = {}, {}, {}, {}
        for row in results:
            if row["stage"] == "runs":
                sizes[row["size"]] = (
                    row["frozen"] or row["trained"]
                )  # an adapter's base is frozen; without one it is all
                key = tuple(row[axis] for axis in ("size", "regime", "task", "method"))
                scores[key] = dict(zip(row["seed"], row["test"]))
                metrics[row["task"]] = row["metric"]
                trained[row["size"], row["task"], row["method"]] = row["trained"]
        sizes = dict(sorted(sizes.items(), key=lambda item: item[1]))
        return cls(scores, sizes, metrics, trained)

    def names(self, axis: int) -> list[str]:
        """The values of an axis of `scores`, as they first stand there."""
        return list(dict.fromkeys(key[axis] for key in self.scores))

    def by_size(self, regime: str, task: str, method: str) -> dict[str, Mapping[int, float]]:
        """Size -> seed -> score, of the sizes that are there."""
        found = {size: self.scores.get((size, regime, task, method)) for size in self.sizes}
        return {size: scores for size, scores in found.items() if scores}

    def gaps(self, regime: str, task: str, method: str, reference: str) -> dict[str, dict[int, float]]:
        """Size -> seed -> the reference's score less the method's."""
        ours, theirs = self.by_size(regime, task, method), self.by_size(regime, task, reference)
        pair = lambda size: {
            seed: theirs[size][seed] - score for seed, score in ours[size].items() if seed in theirs[size]
        }
        return {size: pair(size) for size in ours if size in theirs}


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate:
    """`ours` less `theirs`, paired by seed."""
    return mean([ours[seed] - theirs[seed] for seed in ours if seed in theirs], signed=True)


def trend(runs: Runs, values: Mapping[str, Mapping[int, float]]) -> Estimate | None:
    """Change of `values` (size -> seed -> value) for ten times the parameters: the slope of a line over log10 of the size.

    None of fewer than `FEWEST_SIZES` sizes.
    """
    if len(values) < FEWEST_SIZES:
        return None
    x = np.log10([runs.sizes[size] for size in values])
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()  # of the means, in the slope
    means, errors, freedom = _means(values)
    slope, error = float(weights @ means), float(np.sqrt((weights**2) @ (errors**2)))
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * error if freedom else math.nan
    return Estimate(slope, slope - reach, slope + reach)


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """error(N) = a * N^-b + c, with c 0 of fewer than `WITH_OFFSET` sizes.

    Attributes:
      a, b, c: the fit to the means.
      exponent: b and its interval.
      predicted: the error at the size that was asked for, and its interval.
    """

    a: float
    b: float
    c: float
    exponent: Estimate
    predicted: Estimate | None


def power_law(runs: Runs, errors: Mapping[str, Mapping[int, float]], at: str | None = None) -> PowerLaw | None:
    """A power law of the error against the base's parameters (Kaplan et al., 2020; with an offset as Hoffmann et al., 2022).

    Args:
      runs: gives the sizes.
      errors: size -> seed -> error.
      at: a size whose error is predicted.

    Returns:
      The fit; None of fewer than two sizes, or where an error is 0.
    """
    if len(errors) < 2 or min(np.mean(list(seeds.values())) for seeds in errors.values()) <= 0:
        return None
    n = np.array([runs.sizes[size] for size in errors], float)
    scale = n[0]  # for a well-conditioned fit
    offset = len(errors) >= WITH_OFFSET
    there = None if at is None else runs.sizes[at] / scale

    def fit(y: np.ndarray) -> np.ndarray:
        law = (lambda x, a, b, c: a * x**-b + c) if offset else (lambda x, a, b: a * x**-b)
        start = [max(y[0], 1e-6), 0.2, *([0.0] if offset else [])]
        bottom, top = [0.0, -5.0, *([0.0] if offset else [])], [10.0, 5.0, *([max(y.min(), 1e-9)] if offset else [])]
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", optimize.OptimizeWarning)  # of the covariance, which is not used
            found, _ = optimize.curve_fit(law, n / scale, y, start, bounds=(bottom, top), maxfev=20_000)
        return np.array([*found, *([] if offset else [0.0])])

    def told(y: np.ndarray) -> np.ndarray:
        a, b, c = fit(y)
        return np.array([b] if there is None else [b, a * there**-b + c])

    means, deviations, freedom = _means(errors)
    a, b, c = fit(means)
    drawn = np.random.default_rng(SEED).standard_t(max(freedom, 1), (DRAWS, len(means)))
    found = np.array([told(np.maximum(means + deviations * t, 1e-6)) for t in drawn])
    tail = 100 * (1 - CONFIDENCE) / 2
    ends = np.percentile(found, [tail, 100 - tail], axis=0) if freedom else np.full((2, found.shape[1]), math.nan)
    exponent, *predicted = (Estimate(*map(float, each)) for each in zip(told(means), *ends))
    return PowerLaw(float(a * scale**b), float(b), float(c), exponent, predicted[0] if predicted else None)


def _means(values: Mapping[str, Mapping[int, float]]) -> tuple[np.ndarray, np.ndarray, int]:
    """Of each size the mean and its standard error, by one variance of the seeds for all; its degrees of freedom."""
    columns = [np.array(list(seeds.values())) for seeds in values.values()]
    freedom = sum(len(column) - 1 for column in columns)
    variance = sum(((column - column.mean()) ** 2).sum() for column in columns) / max(freedom, 1)
    errors = np.sqrt([variance / len(column) for column in columns])
    return np.array([column.mean() for column in columns]), errors, freedom
