"""Exact comparison: a prediction is right if it equals its target character for character; nothing is normalised."""

from collections.abc import Sequence

from adalink_jax.data.metrics import metric_arguments


def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """The share in [0, 1] of predictions that equal their target.

    Raises:
      UserError: if there are no targets, or not one prediction for each.
    """
    metric_arguments.paired("accuracy", targets, predictions)
    return {"accuracy": sum(t == p for t, p in zip(targets, predictions)) / len(targets)}


def exact_match(targets: Sequence[str | Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """The share in [0, 1] of predictions that equal one of their references.

    Args:
      targets: one string for each prediction, or several.
      predictions: strings.

    Raises:
      UserError: if there are no targets, or not one prediction for each, or a target has no reference.
    """
    several = metric_arguments.references("exact_match", targets, predictions)
    return {"exact_match": sum(p in references for references, p in zip(several, predictions)) / len(several)}
