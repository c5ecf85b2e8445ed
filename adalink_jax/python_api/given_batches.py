"""Batches that a caller makes, as the training loop reads them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from adalink_jax.data.feature_converter import Batch
from adalink_jax.errors import UserError
from adalink_jax.typed_values import shown

FEATURES = ("encoder_input_tokens", "decoder_target_tokens", "decoder_input_tokens", "decoder_loss_weights")
REMEDY = "`model.batch(rows)` makes such batches"


def is_batches(train: Any) -> bool:
    """Whether this is an iterator of batches, and not rows: an iterator can be read once, and rows are read every epoch."""
    return hasattr(train, "__next__")


class GivenBatches:
    """A `BatchIterator` over a caller's iterator of global batches. A resumed run skips the batches of its earlier steps.

    Args:
      batches: yields mappings of features, see `AttachedModel.batch`.
      batch_size: the rows of each.
      steps: how many of them the run takes.
      rows: those of the global batch that this process needs.
    """

    def __init__(self, batches: Iterator[Any], batch_size: int, steps: int, rows: Sequence[int]):
        self._batches, self._batch_size, self._steps, self._rows = batches, batch_size, steps, list(rows)
        self._taken = self._wanted = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
          UserError: if the iterator has ended, or for what is not a batch of `batch_size` rows.
        """
        if self._wanted < self._taken:
            raise UserError("`train` is an iterator, and cannot go back to an earlier batch; give a new one.")
        batch = None
        while self._taken <= self._wanted:
            batch = next(self._batches, None)
            if batch is None:
                raise UserError(
                    f"`train` ended after {self._taken} batches, and `steps` is {self._steps}; give an iterator with a batch for each step."
                )
            self._taken += 1
        self._wanted += 1
        return self._checked(batch)

    def get_state(self) -> dict[str, Any]:
        """Returns `{"batch": number}`."""
        return {"batch": self._wanted}

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a batch; those before it are skipped by the following `next`."""
        self._wanted = int(state["batch"])

    def _checked(self, batch: Any) -> Batch:
        place = f"Batch {self._wanted - 1} of `train`"
        if not isinstance(batch, Mapping):
            raise UserError(f"{place} is {shown(batch)}; it must be a mapping of features: {REMEDY}.")
        if missing := [name for name in FEATURES if name not in batch]:
            raise UserError(f"{place} has no {missing[0]!r}; it has {', '.join(map(repr, batch))}: {REMEDY}.")
        arrays = {name: np.asarray(x) for name, x in batch.items()}
        odd = next((name for name, x in arrays.items() if len(x) != self._batch_size), None)
        if odd is not None:
            raise UserError(
                f"{place} has {len(arrays[odd])} rows of {odd!r}, and `batch_size` is {self._batch_size}; make them equal."
            )
        return {name: x[self._rows] for name, x in arrays.items()}
