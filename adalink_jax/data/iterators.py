"""Iterators of NumPy batches whose position is one small state, valid on any number of hosts."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from adalink_jax.data.feature_converter import FeatureConverter
from adalink_jax.data.tasks import DatasetConfig, Task
from adalink_jax.errors import UserError


class BatchIterator(Protocol):
    """What the training loop takes: endless batches, each a dict of arrays with this process's rows on axis 0."""

    def __next__(self) -> dict[str, np.ndarray]: ...

    def get_state(self) -> dict:
        """The position, as JSON can hold it: the batch that `next` would give now."""

    def set_state(self, state: dict) -> None:
        """Goes to a position that `get_state` gave."""


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of an epoch's order, of 31 bits."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0] & 0x7FFFFFFF)


class EpochIterator:
    """Full batches of a source, epoch after epoch, each shuffled by a seed of its own; an epoch's remainder is dropped.

    Args:
      examples: `(seed, start) -> iterable` of the examples of one epoch from number `start` on, in an order that depends
        on `seed` alone.
      converter: examples -> batch.
      batch_size: rows of the global batch.
      seed: with the epoch's number it gives the epoch's seed.
      rows: numbers of the rows of the global batch that this process needs, ascending; None for all. Every process reads
        the same examples in the same order, and converts only its own.

    Raises:
      UserError: from `next`, if an epoch has fewer examples than a batch.
    """

    def __init__(
        self,
        examples: Callable[[int, int], Iterable[dict]],
        converter: FeatureConverter,
        batch_size: int,
        seed: int,
        rows: Sequence[int] | None = None,
    ):
        self._examples, self._converter, self._batch_size, self._seed = examples, converter, batch_size, seed
        self._mine = range(batch_size) if rows is None else rows
        self.set_state({"epoch": 0, "batch": 0})

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        batch = self._take()
        if batch is None and self._batch:
            self.set_state({"epoch": self._epoch + 1, "batch": 0})
            batch = self._take()
        if batch is None:
            raise UserError(f"The data has fewer examples than the batch size, {self._batch_size}.")
        self._batch += 1
        return batch

    def _take(self) -> dict[str, np.ndarray] | None:
        """The next batch of this epoch; None at its end."""
        if self._opened is None:
            self._opened = self._open(epoch_seed(self._seed, self._epoch), self._batch)
        return next(self._opened, None)

    def _open(self, seed: int, batch: int) -> Iterator[dict[str, np.ndarray]]:
        """The batches of an epoch, from number `batch` on."""
        rows = iter(self._examples(seed, batch * self._batch_size))
        while len(whole := list(itertools.islice(rows, self._batch_size))) == self._batch_size:
            yield self._converter([whole[row] for row in self._mine])

    def get_state(self) -> dict:
        """`{"epoch": ..., "batch": ...}`."""
        return {"epoch": self._epoch, "batch": self._batch}

    def set_state(self, state: dict) -> None:
        """Opens the epoch and skips to the batch, when the next one is asked for."""
        self._epoch, self._batch, self._opened = int(state["epoch"]), int(state["batch"]), None


def train_batches(
    task: Task, dataset: DatasetConfig, converter: FeatureConverter, rows: Sequence[int] | None = None
) -> EpochIterator:
    """The batches that `dataset` says of the task's training split, in the order of `dataset.seed`; of them `rows`.

    Raises:
      UserError: from `next`, if the split has fewer examples than a batch, or than `dataset.train_examples`.
    """
    examples = lambda seed, start: task.examples("train", seed, start)
    if dataset.train_examples is not None:
        examples = _drawn(examples, dataset.train_examples, dataset.seed)
    converter = dataclasses.replace(converter, task_name=task.name)
    if getattr(task, "workers", 0) and dataset.train_examples is None:  # a few examples are read once
        from adalink_jax.data.user_files.workers import WorkerIterator

        return WorkerIterator(task, converter, dataset.batch_size, dataset.seed, rows)
    return EpochIterator(examples, converter, dataset.batch_size, dataset.seed, rows)


def _drawn(
    examples: Callable[[int, int], Iterable[dict]], count: int, seed: int
) -> Callable[[int, int], Iterable[dict]]:
    """The first `count` in the order of `seed`, in each epoch's own order."""

    @functools.cache
    def drawn() -> list[dict]:
        found = list(itertools.islice(examples(seed, 0), count))
        if len(found) < count:
            raise UserError(f"TRAIN_EXAMPLES is {count}, and the training split has {len(found)}; lower it.")
        return found

    return lambda epoch, start: [drawn()[i] for i in np.random.default_rng(epoch).permutation(count)[start:]]


def padded_batches(
    examples: Iterable[dict], converter: FeatureConverter, batch_size: int, rows: Sequence[int] | None = None
) -> Iterator[tuple[dict[str, np.ndarray], list[dict]]]:
    """Each example once, in order: `(batch, its examples)`; the last batch is padded to the one shape.

    Rows beyond the examples are padding and have loss weight 0. With `rows` (ascending) the batch holds only these.
    """
    mine, source = range(batch_size) if rows is None else rows, iter(examples)
    while chunk := list(itertools.islice(source, batch_size)):
        own = [chunk[row] for row in mine if row < len(chunk)]
        batch = converter(own or chunk[:1], len(mine))
        yield batch if own else {name: np.zeros_like(x) for name, x in batch.items()}, chunk
