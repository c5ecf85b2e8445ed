"""The metrics of GLUE and SuperGLUE over predicted label words, equal to T5's own evaluation, in shares instead of percent.

A prediction that is not a label counts as wrong, never as an error: as a separate class, number -1, for Matthews and for CB's
mean F1; as the opposite of its target for the F1 of two classes. A target that is not a label is an error.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from adalink_jax.data.metrics import labels, metric_arguments
from adalink_jax.data.metrics.word_overlap import squad
from adalink_jax.errors import UserError

NO_LABEL = -1
NO_NUMBER = -1.0
_ZERO: Any = 0.0  # scikit-learn's annotation of `zero_division` lacks numbers, which its documentation asks for


def f1(targets: Sequence[str], predictions: Sequence[str], *, label_words: Sequence[str]) -> dict[str, float]:
    """F1 of the second label, in [0, 1] (MRPC, QQP); 0 if it is neither a target nor predicted.

    Args:
      targets: label words.
      predictions: strings; one that is not a label counts as the opposite of its target.
      label_words: the negative and the positive label.

    Raises:
      UserError: if there are no targets, not one prediction for each, or a target that is not a label.
    """
    from sklearn.metrics import f1_score  # takes a second or more

    expected, predicted = _numbers("f1", targets, predictions, label_words)
    predicted = np.where(predicted == NO_LABEL, 1 - expected, predicted)
    return {"f1": float(f1_score(expected, predicted, zero_division=_ZERO))}


def mean_f1(targets: Sequence[str], predictions: Sequence[str], *, label_words: Sequence[str]) -> dict[str, float]:
    """Unweighted mean of the F1 of each label, in [0, 1], under T5's name `mean_3class_f1` (CB).

    Args:
      targets: label words.
      predictions: strings; one that is not a label is a miss of its target's class, and counts for no other.
      label_words: all labels; one that is neither a target nor predicted has an F1 of 0.

    Raises:
      UserError: if there are no targets, not one prediction for each, or a target that is not a label.
    """
    from sklearn.metrics import f1_score

    expected, predicted = _numbers("mean_f1", targets, predictions, label_words)
    classes = range(len(label_words))
    mean = f1_score(expected, predicted, labels=classes, average="macro", zero_division=_ZERO)
    return {f"mean_{len(label_words)}class_f1": float(mean)}


def matthews(targets: Sequence[str], predictions: Sequence[str], *, label_words: Sequence[str]) -> dict[str, float]:
    """Matthews correlation in [-1, 1], of any number of classes (CoLA); 0 if all targets or all predictions are equal.

    Args:
      targets: label words.
      predictions: strings; those that are not labels form one more class.
      label_words: all labels.

    Raises:
      UserError: if there are no targets, not one prediction for each, or a target that is not a label.
    """
    from sklearn.metrics import matthews_corrcoef

    expected, predicted = _numbers("matthews", targets, predictions, label_words)
    constant = len(set(expected)) == 1 or len(set(predicted)) == 1
    return {"matthews_corrcoef": 0.0 if constant else float(matthews_corrcoef(expected, predicted))}


def correlations(targets: Sequence[str | float], predictions: Sequence[str]) -> dict[str, float]:
    """`pearson_corrcoef` and `spearman_corrcoef`, in [-1, 1] (STS-B).

    Args:
      targets: numbers, or strings of numbers.
      predictions: strings; one that is not a finite number counts as -1, as in T5 (except that T5 accepts "nan" and "inf",
        which make the score NaN).

    Returns:
      Both 0 if all predictions are the same number: scipy's NaN could not be compared or averaged.

    Raises:
      UserError: if there are fewer than two targets, not one prediction for each, a target that is not a finite number, or
        if all targets are equal.
    """
    metric_arguments.paired("correlations", targets, predictions)
    expected = [number(target, math.nan) for target in targets]
    for i, value in enumerate(expected):
        if math.isnan(value):
            raise UserError(f"correlations: target {i} is {targets[i]!r}, which is not a finite number.")
    if len(set(expected)) == 1:
        raise UserError(f"correlations needs targets that differ; each of the {len(expected)} is {expected[0]}.")
    import scipy.stats  # takes a second or more

    predicted = [number(prediction, NO_NUMBER) for prediction in predictions]
    if len(set(predicted)) == 1:
        return {"pearson_corrcoef": 0.0, "spearman_corrcoef": 0.0}
    results: dict[str, Any] = {  # scipy annotates these results as plain tuples
        "pearson_corrcoef": scipy.stats.pearsonr(expected, predicted),
        "spearman_corrcoef": scipy.stats.spearmanr(expected, predicted),
    }
    return {name: float(result[0]) for name, result in results.items()}


def multirc(targets: Sequence[Mapping[str, Any]], predictions: Sequence[str | Mapping[str, str]]) -> dict[str, float]:
    """`f1` over all answers (F1a) and `exact_match`, the share of questions whose answers are all judged correctly.

    Args:
      targets: `{"group": the question, "value": "True" or "False"}`; a question's answers need not be adjacent.
      predictions: strings, or `{"value": string}` as T5's postprocessor returns them.

    Returns:
      Shares in [0, 1] (Khashabi et al. 2018, "MultiRC").

    Raises:
      UserError: if there are no targets, not one prediction for each, a target without a group, or one that is not a label.
    """
    groups, words, plain = _grouped("multirc", targets, predictions)
    scores = f1(words, plain, label_words=labels.SUPERGLUE["multirc"])
    all_groups = set(groups)
    wrong = {group for group, target, prediction in zip(groups, words, plain) if target != prediction}
    return scores | {"exact_match": (len(all_groups) - len(wrong)) / len(all_groups)}


def record(targets: Sequence[Mapping[str, Any]], predictions: Sequence[str | Mapping[str, str]]) -> dict[str, float]:
    """`exact_match` and `f1` in [0, 1], the best over a query's answers, normalised as SQuAD does (Zhang et al. 2018).

    A query that is in the data once for each of its answers is scored once: by its first prediction.

    Args:
      targets: `{"group": the query, "value": its answers}`.
      predictions: strings, or `{"value": string}` as T5's postprocessor returns them.

    Raises:
      UserError: if there are no targets, not one prediction for each, or a target without a group or answers.
    """
    first: dict[Hashable, tuple[Any, str]] = {}
    for group, answers, prediction in zip(*_grouped("record", targets, predictions)):
        first.setdefault(group, (answers, prediction))
    return squad([answers for answers, _ in first.values()], [prediction for _, prediction in first.values()])


def _numbers(
    metric: str, targets: Sequence[str], predictions: Sequence[str], label_words: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Converts both to int arrays of the labels' numbers, with NO_LABEL for predictions that are not labels."""
    metric_arguments.paired(metric, targets, predictions)
    classes = {word: i for i, word in enumerate(label_words)}
    for i, target in enumerate(targets):
        if target not in classes:
            raise UserError(
                f"{metric}: target {i} is {target!r}, which is not one of the labels {', '.join(label_words)}."
            )
    return np.array([classes[t] for t in targets]), np.array([classes.get(p, NO_LABEL) for p in predictions])


def number(text: str | float, otherwise: float) -> float:
    """Converts text to a finite number; returns `otherwise` if it is not one."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return otherwise
    return value if math.isfinite(value) else otherwise


def _grouped(
    metric: str, targets: Sequence[Mapping[str, Any]], predictions: Sequence[str | Mapping[str, str]]
) -> tuple[list[Hashable], list[Any], list[str]]:
    """The targets' groups, their values, and the predictions as plain strings."""
    metric_arguments.paired(metric, targets, predictions)
    for i, target in enumerate(targets):
        if not isinstance(target, Mapping) or not {"group", "value"} <= set(target):
            raise UserError(f"{metric}: target {i} is {target!r}; it must be a dict with `group` and `value`.")
    plain: list[Any] = [p["value"] if isinstance(p, Mapping) and "value" in p else p for p in predictions]
    metric_arguments.strings(metric, plain)
    return [target["group"] for target in targets], [target["value"] for target in targets], plain
