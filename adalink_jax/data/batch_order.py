"""The order of training batches: epochs, each in an order of its own, and the position in it as one small state for any number of hosts."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from adalink_jax import moved
from adalink_jax.data.feature_converter import Batch, FeatureConverter
from adalink_jax.data.task_protocol import Example
from adalink_jax.errors import UserError

ExamplesOfEpoch = Callable[[int, int], Iterable[Example]]  # (seed, start) -> the examples from number `start` on
ExamplesAt = Callable[[int, Sequence[int]], Iterable[Example]]  # (seed, numbers) -> the examples with these numbers


class BatchIterator(Protocol):
    """What the training loop reads: endless batches of arrays with this process's rows on axis 0."""

    def __next__(self) -> Batch: ...

    def get_state(self) -> dict[str, Any]:
        """Returns the position as a JSON object: the batch that `next` would return now."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a position that `get_state` returned."""
        ...


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of an epoch's order, 31 bits."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0] & 0x7FFFFFFF)


class EpochIterator:
    """Full batches of a source, epoch after epoch, each in an order of its own; an epoch's remainder is dropped.

    Args:
      examples: `(seed, start) -> iterable` of the examples of one epoch from number `start` on, in an order that depends
        on `seed` alone.
      converter: turns examples into a batch.
      batch_size: rows of the global batch.
      seed: determines the epochs' seeds, together with their numbers.
      rows: the rows of the global batch that this process needs, ascending; None for all. Every process reads the same
        examples in the same order, and converts only its rows.

    Raises:
      UserError: from `next`, if an epoch has fewer examples than a batch.
    """

    def __init__(
        self,
        examples: ExamplesOfEpoch,
        converter: FeatureConverter,
        batch_size: int,
        seed: int,
        rows: Sequence[int] | None = None,
    ):
        self._examples, self._converter, self._batch_size, self._seed = examples, converter, batch_size, seed
        self._rows = range(batch_size) if rows is None else rows
        self.set_state({"epoch": 0, "batch": 0})

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._batches is None:
            self._batches = self._open(self._batch)
        batch = next(self._batches, None)
        if batch is None and self._batch:
            self.set_state({"epoch": self._epoch + 1, "batch": 0})
            return next(self)
        if batch is None:
            raise UserError(f"The data has fewer examples than the batch size, {self._batch_size}.")
        self._batch += 1
        return batch

    def _open(self, start: int) -> Iterator[Batch]:
        """The batches of this epoch from number `start` on."""
        examples = iter(self._examples(epoch_seed(self._seed, self._epoch), start * self._batch_size))
        while len(batch := list(itertools.islice(examples, self._batch_size))) == self._batch_size:
            yield self._converter([batch[row] for row in self._rows])

    def get_state(self) -> dict[str, Any]:
        """Returns `{"epoch": ..., "batch": ...}`."""
        return {"epoch": self._epoch, "batch": self._batch}

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a batch; its epoch is opened by the following `next`."""
        self._epoch, self._batch = int(state["epoch"]), int(state["batch"])
        self._batches: Iterator[Batch] | None = None


class OwnRowsIterator(EpochIterator):
    """The batches and states of an `EpochIterator`, of which this process reads its own rows only.

    Args:
      examples_at: `(seed, numbers) -> iterable` of the examples with these numbers in the epoch of this seed.
      size: returns the number of examples of an epoch with this seed.
      converter, batch_size, seed, rows: see `EpochIterator`.
    """

    def __init__(
        self,
        examples_at: ExamplesAt,
        size: Callable[[int], int],
        converter: FeatureConverter,
        batch_size: int,
        seed: int,
        rows: Sequence[int] | None = None,
    ):
        self._examples_at, self._size = examples_at, size
        in_order: ExamplesOfEpoch = lambda seed, start: examples_at(seed, range(start, size(seed)))
        super().__init__(in_order, converter, batch_size, seed, rows)

    def _open(self, start: int) -> Iterator[Batch]:
        """The batches of this epoch from number `start` on."""
        seed = epoch_seed(self._seed, self._epoch)
        batches = range(start, self._size(seed) // self._batch_size)
        examples = iter(self._examples_at(seed, _OwnNumbers(batches, self._batch_size, self._rows)))
        for _ in batches:
            yield self._converter(list(itertools.islice(examples, len(self._rows))))


class _OwnNumbers(Sequence[int]):
    """The numbers of the examples in `rows` of each of `batches`, computed when they are asked for."""

    def __init__(self, batches: range, batch_size: int, rows: Sequence[int]):
        self._batches, self._batch_size, self._rows = batches, batch_size, rows

    def __len__(self) -> int:
        return len(self._batches) * len(self._rows)

    def __getitem__(self, i: int) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        batch, row = divmod(i, len(self._rows))
        return self._batches[batch] * self._batch_size + self._rows[row]


_BATCHES = "adalink_jax.data.batches"
__getattr__ = moved.names(__name__, {"train_batches": _BATCHES, "padded_batches": _BATCHES})
