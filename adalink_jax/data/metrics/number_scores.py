"""Scores of predicted numbers: correlations, in [-1, 1], and errors, in the units of the targets, where lower is better.

A prediction that is not a finite number counts as wrong, never as an error: as the smallest or largest target, whichever is
farther from its own. A target that is not a finite number is an error.
"""

import math
from collections.abc import Sequence

import numpy as np

from adalink_jax.data.metrics import metric_arguments
from adalink_jax.data.metrics.glue_scores import number
from adalink_jax.errors import UserError

LOWER_IS_BETTER = ("rmse", "mae")  # these cannot select a step


def pearson(targets: Sequence[str | float], predictions: Sequence[str]) -> dict[str, float]:
    """Pearson's correlation, in [-1, 1] (`scipy.stats.pearsonr`); 0 if all targets or all predictions are equal.

    Args:
      targets: numbers, or strings of numbers.
      predictions: strings.

    Raises:
      UserError: if there are no targets, not one prediction for each, or a target that is not a finite number.
    """
    import scipy.stats  # takes a second or more

    return {"pearson": _correlation(scipy.stats.pearsonr, *_numbers("pearson", targets, predictions))}


def spearman(targets: Sequence[str | float], predictions: Sequence[str]) -> dict[str, float]:
    """Spearman's correlation of ranks, in [-1, 1] (`scipy.stats.spearmanr`). Otherwise as `pearson`."""
    import scipy.stats

    return {"spearman": _correlation(scipy.stats.spearmanr, *_numbers("spearman", targets, predictions))}


def rmse(targets: Sequence[str | float], predictions: Sequence[str]) -> dict[str, float]:
    """Root mean squared error, in the units of the targets. Arguments and errors are those of `pearson`."""
    expected, predicted = _numbers("rmse", targets, predictions)
    return {"rmse": float(np.sqrt(np.mean((expected - predicted) ** 2)))}


def mae(targets: Sequence[str | float], predictions: Sequence[str]) -> dict[str, float]:
    """Mean absolute error, in the units of the targets. Arguments and errors are those of `pearson`."""
    expected, predicted = _numbers("mae", targets, predictions)
    return {"mae": float(np.mean(np.abs(expected - predicted)))}


def as_number(text: str | float) -> float | None:
    """A finite number; None for text that is not one."""
    value = number(text, math.nan)
    return None if math.isnan(value) else value


def _correlation(correlate, expected: np.ndarray, predicted: np.ndarray) -> float:
    """The statistic of a function of scipy; 0 where it is undefined."""
    constant = (expected == expected[0]).all() or (predicted == predicted[0]).all()
    return 0.0 if constant else float(correlate(expected, predicted)[0])


def _numbers(metric: str, targets: Sequence[str | float], predictions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 [examples]."""
    metric_arguments.paired(metric, targets, predictions)
    metric_arguments.strings(metric, predictions)
    expected = [as_number(target) for target in targets]
    for i, value in enumerate(expected):
        if value is None:
            raise UserError(f"{metric}: target {i} is {targets[i]!r}, which is not a finite number.")
    values = np.array(expected, float)
    low, high = values.min(), values.max()
    farthest = np.where(values - low > high - values, low, high)
    predicted = [as_number(text) for text in predictions]
    return values, np.array([far if x is None else x for x, far in zip(predicted, farthest)], float)
