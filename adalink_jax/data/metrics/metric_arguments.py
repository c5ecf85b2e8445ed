"""Checks of the arguments that all metrics share: targets exist, each has one prediction, and both are strings."""

from collections.abc import Sequence

from adalink_jax.errors import UserError


def paired(metric: str, targets: Sequence, predictions: Sequence) -> None:
    """Raises a UserError that names `metric` unless there are targets and one prediction for each."""
    if not len(targets) or len(targets) != len(predictions):
        raise UserError(f"{metric} needs one prediction per target; it got {len(predictions)} for {len(targets)}.")


def strings(metric: str, predictions: Sequence) -> None:
    """Raises a UserError that names `metric` and the first prediction that is not a string."""
    for i, prediction in enumerate(predictions):
        if not isinstance(prediction, str):
            raise UserError(f"{metric}: prediction {i} is {prediction!r}; predictions are strings.")


def references(metric: str, targets: Sequence, predictions: Sequence) -> list[list[str]]:
    """Checks all arguments and converts each target to a list of references: a string is one, a sequence of strings is several.

    Raises:
      UserError: as `paired` and `strings`; for a target without a reference, or with one that is not a string.
    """
    paired(metric, targets, predictions)
    strings(metric, predictions)
    several = [[target] if isinstance(target, str) else list(target) for target in targets]
    for i, strings_of_target in enumerate(several):
        if not strings_of_target or not all(isinstance(reference, str) for reference in strings_of_target):
            raise UserError(
                f"{metric}: target {i} is {targets[i]!r}; it must be a string or a list of strings that is not empty."
            )
    return several
