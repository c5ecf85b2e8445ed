"""Scores of sets of labels, without order, in [0, 1]. A label that no target has is a false one."""

from collections.abc import Sequence
from typing import Any

from adalink_jax.data.metrics import metric_arguments
from adalink_jax.errors import UserError

_ZERO: Any = 0.0  # scikit-learn's annotation of `zero_division` lacks numbers, which its documentation asks for
_ONE: Any = 1.0


def label_sets(targets: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> dict[str, float]:
    """Scores of scikit-learn for multi-label data.

    `subset_accuracy`: the share of examples with exactly the right set. `micro_f1`: F1 of all labels of all examples. `macro_f1`:
    the unweighted mean of the F1 of each label that a target has. `jaccard`: the mean over examples of the shared labels as a share
    of those in either set, 1 where both are empty.

    Args:
      targets: the labels of each example; they may be none.
      predictions: the predicted labels of each.

    Raises:
      UserError: if there are no targets, or not one prediction for each, or one of them is a string.
    """
    from sklearn.metrics import accuracy_score, f1_score, jaccard_score  # takes a second or more
    from sklearn.preprocessing import MultiLabelBinarizer

    metric_arguments.paired("label_sets", targets, predictions)
    if (text := next((x for x in (*targets, *predictions) if isinstance(x, str)), None)) is not None:
        raise UserError(f"label_sets: {text!r} is a string; targets and predictions are lists of labels.")
    if not any(map(len, targets)) and not any(map(len, predictions)):
        return dict.fromkeys(("subset_accuracy", "micro_f1", "macro_f1", "jaccard"), 1.0)
    known = sorted(set().union(*targets))
    others = sorted(set().union(*predictions) - {*known})
    # scikit-learn takes one column for plain classes, so there is one more, of a label that nothing has.
    binarizer = MultiLabelBinarizer(classes=[*known, *others, None], sparse_output=True)
    expected, predicted = binarizer.fit_transform(targets), binarizer.transform(predictions)
    of_known = {"labels": range(len(known)), "average": "macro", "zero_division": _ZERO}
    macro = f1_score(expected, predicted, **of_known) if known else 0.0
    return {
        "subset_accuracy": float(accuracy_score(expected, predicted)),
        "micro_f1": float(f1_score(expected, predicted, average="micro", zero_division=_ZERO)),
        "macro_f1": float(macro),
        "jaccard": float(jaccard_score(expected, predicted, average="samples", zero_division=_ONE)),
    }
