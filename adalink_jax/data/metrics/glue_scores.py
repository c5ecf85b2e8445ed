"""The metrics of GLUE and SuperGLUE over predicted label words, as T5's own evaluation counts, in shares instead of percent.

A prediction that is no label counts as wrong, and never as an error: as a class of its own, number -1, for Matthews and
for CB's mean F1; as the opposite of its target for the F1 of two classes. A target that is no label is an error.
"""

import functools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np

from adalink_jax.data.metrics import labels, metric_arguments
from adalink_jax.data.metrics.exact import accuracy
from adalink_jax.data.metrics.word_overlap import squad
from adalink_jax.errors import UserError

NO_LABEL = -1
NO_NUMBER = -1.0

Metric = Callable[[Sequence, Sequence], dict[str, float]]


def f1(targets: Sequence[str], predictions: Sequence[str], *, label_words: Sequence[str]) -> dict[str, float]:
    """F1 of the second label, in [0, 1] (MRPC, QQP). 0 where it is neither a target nor predicted.

    Args:
      targets: label words.
      predictions: strings; one that is no label counts as the opposite of its target.
      label_words: the negative and the positive one.

    Raises:
      UserError: if there are no targets, not one prediction for each, or a target that is no label.
    """
    expected, found = _numbers("f1", targets, predictions, label_words)
    found = np.where(found == NO_LABEL, 1 - expected, found)
    return {"f1": float(_sklearn().f1_score(expected, found, zero_division=0.0))}


def mean_f1(targets: Sequence[str], predictions: Sequence[str], *, label_words: Sequence[str]) -> dict[str, float]:
    """Unweighted mean of the F1 of each label, in [0, 1], named as T5 names it: `mean_3class_f1` (CB).

    Args:
      targets: label words.
      predictions: strings; one that is no label is a miss of its target's class, and counts for no other.
      label_words: all of them; one that is neither a target nor predicted has an F1 of 0.

    Raises:
      UserError: if there are no targets, not one prediction for each, or a target that is no label.
    """
    expected, found = _numbers("mean_f1", targets, predictions, label_words)
    classes = range(len(label_words))
    mean = _sklearn().f1_score(expected, found, labels=classes, average="macro", zero_division=0.0)
    return {f"mean_{len(label_words)}class_f1": float(mean)}


def matthews(targets: Sequence[str], predictions: Sequence[str], *, label_words: Sequence[str]) -> dict[str, float]:
    """Matthews' correlation in [-1, 1], of any number of classes (CoLA). 0 where targets or predictions are all the same.

    Args:
      targets: label words.
      predictions: strings; those that are no label make up one further class.
      label_words: all of them.

    Raises:
      UserError: if there are no targets, not one prediction for each, or a target that is no label.
    """
    expected, found = _numbers("matthews", targets, predictions, label_words)
    constant = len(set(expected)) == 1 or len(set(found)) == 1
    return {"matthews_corrcoef": 0.0 if constant else float(_sklearn().matthews_corrcoef(expected, found))}


def correlations(targets: Sequence[str | float], predictions: Sequence[str]) -> dict[str, float]:
    """`pearson_corrcoef` and `spearman_corrcoef`, in [-1, 1] (STS-B).

    Args:
      targets: numbers, or strings of numbers.
      predictions: strings; one that is no finite number counts as -1, as in T5 (where "nan" and "inf" are numbers, and
        spoil the score).

    Returns:
      Both 0 where all predictions are the same number: scipy's NaN could not be compared or averaged.

    Raises:
      UserError: if there are less than two targets, not one prediction for each, a target that is no finite number, or
        only one number among the targets.
    """
    metric_arguments.paired("correlations", targets, predictions)
    expected = [_number(target, math.nan) for target in targets]
    for i, value in enumerate(expected):
        if math.isnan(value):
            raise UserError(f"correlations: target {i} is {targets[i]!r}, which is no finite number.")
    if len(set(expected)) == 1:
        raise UserError(f"correlations needs targets that differ; each of the {len(expected)} is {expected[0]}.")
    import scipy.stats  # takes a second or more

    found = [_number(prediction, NO_NUMBER) for prediction in predictions]
    constant = len(set(found)) == 1
    return {
        "pearson_corrcoef": 0.0 if constant else float(scipy.stats.pearsonr(expected, found)[0]),
        "spearman_corrcoef": 0.0 if constant else float(scipy.stats.spearmanr(expected, found)[0]),
    }


def multirc(targets: Sequence[Mapping], predictions: Sequence[str | Mapping]) -> dict[str, float]:
    """`f1` over all answers (F1a) and `exact_match`, the share of questions whose answers are all judged rightly.

    Args:
      targets: `{"group": the question, "value": "True" or "False"}`; a question's answers need not follow each other.
      predictions: strings, or `{"value": string}` as T5's postprocessor gives them.

    Returns:
      Shares in [0, 1] (Khashabi et al. 2018, "MultiRC").

    Raises:
      UserError: if there are no targets, not one prediction for each, a target without group, or one that is no label.
    """
    groups, words, predictions = _grouped("multirc", targets, predictions)
    label_words = labels.SUPERGLUE["multirc"]
    scores = f1(words, predictions, label_words=label_words)
    all_right: dict[Hashable, bool] = {}
    for group, target, prediction in zip(groups, words, predictions):
        all_right[group] = all_right.get(group, True) and target == prediction
    return scores | {"exact_match": sum(all_right.values()) / len(all_right)}


def record(targets: Sequence[Mapping], predictions: Sequence[str | Mapping]) -> dict[str, float]:
    """`exact_match` and `f1` in [0, 1], the best over a query's answers, normalised as SQuAD does (Zhang et al. 2018).

    A query that stands in the data once for each of its answers is scored once: by its first prediction.

    Args:
      targets: `{"group": the query, "value": its answers}`.
      predictions: strings, or `{"value": string}` as T5's postprocessor gives them.

    Raises:
      UserError: if there are no targets, not one prediction for each, or a target without group or answers.
    """
    groups, answers, predictions = _grouped("record", targets, predictions)
    first: dict[Hashable, tuple] = {}
    for group, *pair in zip(groups, answers, predictions):
        first.setdefault(group, pair)
    return squad(*zip(*first.values()))


def _of(metric: Callable, label_words: Sequence[str]) -> Metric:
    return functools.partial(metric, label_words=label_words)


GLUE: dict[str, tuple[Metric, ...]] = {
    "cola": (_of(matthews, labels.GLUE["cola"]),),
    "sst2": (accuracy,),
    "mrpc": (_of(f1, labels.GLUE["mrpc"]), accuracy),
    "stsb": (correlations,),
    "qqp": (_of(f1, labels.GLUE["qqp"]), accuracy),
    "mnli": (accuracy,),
    "mnli_matched": (accuracy,),
    "mnli_mismatched": (accuracy,),
    "qnli": (accuracy,),
    "rte": (accuracy,),
    "wnli": (accuracy,),
}

SUPERGLUE: dict[str, tuple[Metric, ...]] = {
    "boolq": (accuracy,),
    "cb": (_of(mean_f1, labels.SUPERGLUE["cb"]), accuracy),
    "copa": (accuracy,),
    "multirc": (multirc,),
    "record": (record,),
    "rte": (accuracy,),
    "wic": (accuracy,),
}


def _sklearn():
    import sklearn.metrics  # takes a second or more

    return sklearn.metrics


def _numbers(metric: str, targets: Sequence[str], predictions: Sequence[str], label_words: Sequence[str]):
    """Both as int arrays of the labels' numbers, with NO_LABEL for predictions that are none."""
    metric_arguments.paired(metric, targets, predictions)
    number = {word: i for i, word in enumerate(label_words)}
    for i, target in enumerate(targets):
        if target not in number:
            raise UserError(
                f"{metric}: target {i} is {target!r}, which is none of the labels {', '.join(label_words)}."
            )
    return np.array([number[t] for t in targets]), np.array([number.get(p, NO_LABEL) for p in predictions])


def _number(text: str | float, otherwise: float) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return otherwise
    return value if math.isfinite(value) else otherwise


def _grouped(metric: str, targets: Sequence[Mapping], predictions: Sequence[str | Mapping]):
    """Groups, values of the targets, and predictions as plain strings."""
    metric_arguments.paired(metric, targets, predictions)
    for i, target in enumerate(targets):
        if not isinstance(target, Mapping) or not {"group", "value"} <= set(target):
            raise UserError(f"{metric}: target {i} is {target!r}; it has to be a dict with `group` and `value`.")
    plain = [p["value"] if isinstance(p, Mapping) and "value" in p else p for p in predictions]
    metric_arguments.strings(metric, plain)
    return [target["group"] for target in targets], [target["value"] for target in targets], plain
