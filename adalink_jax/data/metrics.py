"""Metrics over decoded strings: `(targets, predictions) -> {name: value}`, as seqio's metric functions are."""

from collections.abc import Sequence

from adalink_jax.errors import UserError


def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Share of predictions in [0, 1] that equal their target, character for character.

    Raises:
      UserError: if there are no targets, or not one prediction for each.
    """
    if not targets or len(targets) != len(predictions):
        raise UserError(f"accuracy needs one prediction a target; it got {len(predictions)} for {len(targets)}.")
    return {"accuracy": sum(t == p for t, p in zip(targets, predictions)) / len(targets)}
