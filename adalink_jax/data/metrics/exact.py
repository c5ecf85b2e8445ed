"""Character for character: a prediction is right or it is wrong, and nothing is normalised."""

from collections.abc import Sequence

from adalink_jax.data.metrics import metric_arguments


def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Share of predictions in [0, 1] that equal their target, character for character.

    Raises:
      UserError: if there are no targets, or not one prediction for each.
    """
    metric_arguments.paired("accuracy", targets, predictions)
    return {"accuracy": sum(t == p for t, p in zip(targets, predictions)) / len(targets)}


def exact_match(targets: Sequence[str | Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """Share of predictions in [0, 1] that equal one of their references, character for character.

    Args:
      targets: each one string, or several.
      predictions: strings.

    Raises:
      UserError: if there are no targets, or not one prediction for each, or a target has no reference.
    """
    metric_arguments.paired("exact_match", targets, predictions)
    metric_arguments.strings("exact_match", predictions)
    several = metric_arguments.references("exact_match", targets)
    return {"exact_match": sum(p in each for each, p in zip(several, predictions)) / len(several)}
