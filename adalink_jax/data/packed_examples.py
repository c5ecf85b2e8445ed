"""Packed examples: rows that hold several short examples, which segment ids keep apart (t5x's `pack = True`).

    encoder_segment_ids   1 1 1 2 2 3 3 3 3 0 0        encoder_positions   0 1 2 0 1 0 1 2 3 0 0

An example goes into the first row of the batch that has room for its inputs and its targets (first fit); the first example for which
no row has room begins the next batch. So a batch's examples are consecutive ones of the epochs' order, a position is the number of
examples read, and memory holds one batch, for any number of hosts. An epoch follows the one before without a gap.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from adalink_jax.data.batch_order import ExamplesOfEpoch, epoch_seed
from adalink_jax.data.feature_converter import Batch, FeatureConverter
from adalink_jax.data.task_protocol import Example
from adalink_jax.errors import UserError

SIDES = ("inputs", "targets")


class _Rows:
    """The rows of one batch while they are filled.

    Attributes:
      examples: of each row, in order.
    """

    def __init__(self, count: int, lengths: tuple[int, int]):
        self.examples: list[list[Example]] = [[] for _ in range(count)]
        self._lengths, self._free = np.array(lengths), np.tile(lengths, (count, 1))

    def add(self, example: Example) -> bool:
        """Puts an example into the first row that has room; False if none has. Longer sequences count as what is left of them."""
        size = np.clip([len(example[side]) for side in SIDES], 1, self._lengths)
        with_room = np.flatnonzero(np.all(self._free >= size, axis=1))
        if not len(with_room):
            return False
        self.examples[with_room[0]].append(example)
        self._free[with_room[0]] -= size
        return True


class PackedIterator:
    """Batches of packed examples, a `BatchIterator`.

    Args:
      examples, converter, batch_size, seed, rows: see `EpochIterator`; a row holds at most the converter's lengths.

    Raises:
      UserError: from `next`, if an epoch has no examples, and for examples with images.
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
        self.set_state({"epoch": 0, "example": 0})

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._batches is None:
            self._batches = self._open()
        batch, self._position = next(self._batches)
        return batch

    def _open(self) -> Iterator[tuple[Batch, tuple[int, int]]]:
        """The batches from the position on, each with the position after it."""
        lengths = self._converter.task_feature_lengths
        empty_rows = lambda: _Rows(self._batch_size, (lengths["inputs"], lengths["targets"]))
        rows = empty_rows()
        for position, example in self._read():
            if not rows.add(example):
                yield self._converter.packed([rows.examples[row] for row in self._rows]), position
                rows = empty_rows()
                rows.add(example)

    def _read(self) -> Iterator[tuple[tuple[int, int], Example]]:
        """All examples from the position on, epoch after epoch, each with its epoch and its number there."""
        epoch, start = self._position
        while True:
            number = start
            for example in self._examples(epoch_seed(self._seed, epoch), start):
                yield (epoch, number), example
                number += 1
            if not number:
                raise UserError(f"{self._converter.task_name} has no examples to train on.")
            epoch, start = epoch + 1, 0

    def get_state(self) -> dict[str, Any]:
        """Returns `{"epoch": ..., "example": ...}`: the first example of the next batch."""
        epoch, example = self._position
        return {"epoch": epoch, "example": example}

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a batch; its epoch is opened by the following `next`."""
        self._position = int(state["epoch"]), int(state["example"])
        self._batches: Iterator[tuple[Batch, tuple[int, int]]] | None = None
