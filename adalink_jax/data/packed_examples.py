"""Packed examples: rows that hold several short examples, which segment ids keep apart (t5x's `pack = True`).

    encoder_segment_ids   1 1 1 2 2 3 3 3 3 0 0        encoder_positions   0 1 2 0 1 0 1 2 3 0 0

An example goes into the first row of the batch that has room for its inputs and its targets (first fit); the first example for which
no row has room begins the next batch. So a batch's examples are consecutive ones of the epochs' order, a position is the number of
examples read, and memory holds one batch, for any number of hosts. An epoch follows the one before without a gap.
"""

import concurrent.futures
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from adalink_jax.data.batch_order import ExamplesOfEpoch, epoch_seed
from adalink_jax.data.feature_converter import Batch, FeatureConverter
from adalink_jax.data.task_protocol import SIDES, Example, MeasuredTask
from adalink_jax.errors import UserError

Read = Callable[[], Example]
_THREADS = concurrent.futures.ThreadPoolExecutor(4, thread_name_prefix="packed")


class _Rows:
    """The rows of one batch while they are filled.

    Attributes:
      reads: of each row, what reads its examples, in order.
    """

    def __init__(self, count: int, lengths: tuple[int, int]):
        self.reads: list[list[Read]] = [[] for _ in range(count)]
        self._lengths, self._free = lengths, [np.full(count, length) for length in lengths]

    def add(self, counts: Sequence[int], read: Read) -> bool:
        """Puts an example with these numbers of tokens into the first row that has room; False if none has. Longer sequences count as what is
        left of them.
        """
        sizes = [min(max(int(count), 1), length) for count, length in zip(counts, self._lengths)]
        has_room = np.logical_and(*(free >= size for free, size in zip(self._free, sizes)))
        row = int(has_room.argmax())  # the first
        if not has_room[row]:
            return False
        self.reads[row].append(read)
        for free, size in zip(self._free, sizes):
            free[row] -= size
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
        for position, counts, read in self._in_order():
            if not rows.add(counts, read):
                yield self._converter.packed([self._read(rows.reads[row]) for row in self._rows]), position
                rows = empty_rows()
                rows.add(counts, read)

    def _in_order(self) -> Iterator[tuple[tuple[int, int], Sequence[int], Read]]:
        """All examples from the position on, epoch after epoch, each with its epoch and its number there, and its numbers of tokens."""
        epoch, start = self._position
        while True:
            number = start
            for counts, read in self._of_epoch(epoch_seed(self._seed, epoch), start):
                yield (epoch, number), counts, read
                number += 1
            if not number:
                raise UserError(f"{self._converter.task_name} has no examples to train on.")
            epoch, start = epoch + 1, 0

    def _of_epoch(self, seed: int, start: int) -> Iterable[tuple[Sequence[int], Read]]:
        """The numbers of tokens of the examples from number `start` on, and what reads each."""
        for example in self._examples(seed, start):
            yield [len(example[side]) for side in SIDES], functools.partial(dict, example)

    def _read(self, reads: Sequence[Read]) -> list[Example]:
        return [read() for read in reads]

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
        in_order: ExamplesOfEpoch = lambda seed, start: task.examples_at(
            "train", seed, range(start, task.size("train", seed))
        )
        super().__init__(in_order, converter, batch_size, seed, rows)
        self._task = task

    def _of_epoch(self, seed: int, start: int) -> Iterable[tuple[Sequence[int], Read]]:
        """See `PackedIterator`."""
        counts, examples = self._task.token_counts("train", seed), self._task.dataset("train", seed)
        for number in range(start, len(counts)):
            yield counts[number], functools.partial(examples.__getitem__, number)

    def _read(self, reads: Sequence[Read]) -> list[Example]:
        return list(_THREADS.map(lambda read: read(), reads))
