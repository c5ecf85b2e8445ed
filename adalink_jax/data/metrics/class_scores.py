"""Scores of classes that count each class alike, however rare it is. The classes are those of the targets.

A prediction that equals no target is a miss of its own target's class, and counts for no other.
"""

from collections.abc import Sequence
from typing import Any

from adalink_jax.data.metrics import metric_arguments

NO_CLASS = -1
_ZERO: Any = 0.0  # scikit-learn's annotation of `zero_division` lacks numbers, which its documentation asks for


def macro_f1(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Unweighted mean of the F1 of each class, in [0, 1] (scikit-learn's `f1_score(average="macro")`).

    Args:
      targets: the classes.
      predictions: strings.

    Raises:
      UserError: if there are no targets, or not one prediction for each.
    """
    from sklearn.metrics import f1_score  # takes a second or more

    expected, predicted, classes = _numbers("macro_f1", targets, predictions)
    score = f1_score(expected, predicted, labels=classes, average="macro", zero_division=_ZERO)
    return {"macro_f1": float(score)}


def balanced_accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Unweighted mean of the recall of each class, in [0, 1] (scikit-learn's `balanced_accuracy_score`).

    Always answering one of C classes scores 1/C. Arguments and errors are those of `macro_f1`.
    """
    from sklearn.metrics import recall_score

    expected, predicted, classes = _numbers("balanced_accuracy", targets, predictions)
    score = recall_score(expected, predicted, labels=classes, average="macro", zero_division=_ZERO)
    return {"balanced_accuracy": float(score)}


def _numbers(metric: str, targets: Sequence[str], predictions: Sequence[str]) -> tuple[list[int], list[int], list[int]]:
    """Targets and predictions as numbers of classes, and the numbers of all classes."""
    metric_arguments.paired(metric, targets, predictions)
    metric_arguments.strings(metric, predictions)
    classes = {name: i for i, name in enumerate(sorted(set(targets)))}
    return [classes[t] for t in targets], [classes.get(p, NO_CLASS) for p in predictions], [*classes.values()]
