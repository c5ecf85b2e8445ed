"""Packed examples: rows that hold several short examples, which segment ids keep apart (t5x's `pack = True`).

    encoder_segment_ids   1 1 1 2 2 3 3 3 3 0 0        encoder_positions   0 1 2 0 1 0 1 2 3 0 0

An example goes into the first row of the batch that has room for its inputs and its targets (first fit); the first example for which
no row has room begins the next batch. So a batch's examples are consecutive ones of the epochs' order, a position is the number of
examples read, and memory holds one batch, for any number of hosts. An epoch follows the one before without a gap.
"""

import concurrent.futures
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from adalink_jax.data.batch_order import epoch_seed
from adalink_jax.data.feature_converter import Batch, FeatureConverter
from adalink_jax.data.read_ahead import THREADS
from adalink_jax.data.task_protocol import SIDES, Example, MeasuredTask
from adalink_jax.errors import UserError


class _Rows:
    """The rows of one batch while they are filled.

    Attributes:
      examples: of each row, in order: its examples, or what stands for them.
    """

    def __init__(self, count: int, lengths: tuple[int, int]):
        self.examples: list[list[Any]] = [[] for _ in range(count)]
        self._lengths, self._free = lengths, [np.full(count, length) for length in lengths]

    def add(self, counts: Sequence[int], example: Any) -> bool:
        """Puts an example with these numbers of tokens into the first row that has room; False if none has. Longer sequences count as what is
        left of them.
        """
        sizes = [min(max(int(count), 1), length) for count, length in zip(counts, self._lengths)]
        has_room = np.logical_and(*(free >= size for free, size in zip(self._free, sizes)))
        row = int(has_room.argmax())  # the first
        if not has_room[row]:
            return False
        self.examples[row].append(example)
        for free, size in zip(self._free, sizes):
            free[row] -= size
        return True


class PackedIterator:
    """Batches of packed examples, a `BatchIterator`.

    Args:
      examples, converter, batch_size, seed, rows: see `EpochIterator`; a row holds at most the converter's lengths. In place of an
        example there may be anything that `_counts` and `_read` take.

    Raises:
      UserError: from `next`, if an epoch has no examples, and for examples with images.
    """

    def __init__(
        self,
        examples: Callable[[int, int], Iterable[Any]],
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
        for position, example in self._in_order():
            counts = self._counts(example)
            if not rows.add(counts, example):
                yield self._converter.packed([self._read(rows.examples[row]) for row in self._rows]), position
                rows = empty_rows()
                rows.add(counts, example)

    def _in_order(self) -> Iterator[tuple[tuple[int, int], Any]]:
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

    def _counts(self, example: Any) -> Sequence[int]:
        """How many tokens each side of an example has."""
        return [len(example[side]) for side in SIDES]

    def _read(self, row: list[Any]) -> list[Example]:
        """The examples of a row."""
        return row

    def get_state(self) -> dict[str, Any]:
        """Returns `{"epoch": ..., "example": ...}`: the first example of the next batch."""
        epoch, example = self._position
        return {"epoch": epoch, "example": example}

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a batch; its epoch is opened by the following `next`."""
        self._position = int(state["epoch"]), int(state["example"])
        self._batches: Iterator[tuple[Batch, tuple[int, int]]] | None = None


class OwnPackedIterator(PackedIterator):
    """The batches and states of a `PackedIterator`, of which this process reads the examples of its own rows only.

    Args:
      task: supplies them, and the numbers of tokens of all.
      converter, batch_size, seed, rows: see `EpochIterator`.
    """

    def __init__(
        self,
        task: MeasuredTask,
        converter: FeatureConverter,
        batch_size: int,
        seed: int,
        rows: Sequence[int] | None = None,
    ):
        places = lambda seed, start: ((seed, number) for number in range(start, task.size("train", seed)))
        super().__init__(places, converter, batch_size, seed, rows)
        self._task = task
        self._threads = concurrent.futures.ThreadPoolExecutor(THREADS, "packed")  # they end when it is collected

    def _counts(self, example: tuple[int, int]) -> Sequence[int]:
        seed, number = example
        return self._task.token_counts("train", seed)[number]

    def _read(self, row: list[tuple[int, int]]) -> list[Example]:
        datasets = [self._task.dataset("train", seed) for seed, _ in row]
        return list(self._threads.map(operator.getitem, datasets, [number for _, number in row]))
