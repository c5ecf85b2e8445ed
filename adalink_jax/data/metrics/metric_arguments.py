"""What every metric asks of its input: something to score, one prediction a target, strings where strings are meant."""

from collections.abc import Sequence

from adalink_jax.errors import UserError


def paired(metric: str, targets: Sequence, predictions: Sequence) -> None:
    """Raises a UserError that names `metric` unless there are targets, and one prediction for each."""
    if not len(targets) or len(targets) != len(predictions):
        raise UserError(f"{metric} needs one prediction a target; it got {len(predictions)} for {len(targets)}.")


def strings(metric: str, predictions: Sequence) -> None:
    """Raises a UserError that names `metric` and the first prediction that is no string."""
    for i, prediction in enumerate(predictions):
        if not isinstance(prediction, str):
            raise UserError(f"{metric}: prediction {i} is {prediction!r}; predictions are strings.")


def references(metric: str, targets: Sequence) -> list[list[str]]:
    """Each target as the list of its references: a string is one reference, a sequence of strings is several.

    Raises:
      UserError: naming `metric` and the first target without a reference, or with one that is no string.
    """
    several = [[target] if isinstance(target, str) else list(target) for target in targets]
    for i, each in enumerate(several):
        if not each or not all(isinstance(reference, str) for reference in each):
            raise UserError(f"{metric}: target {i} is {targets[i]!r}; it has to be a string or a list of some strings.")
    return several
