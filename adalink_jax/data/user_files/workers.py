"""Batches of a file task, made ahead of their use in worker processes (grain's). This module imports no JAX."""

import functools
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np

from adalink_jax.data.batch_order import EpochIterator, epoch_seed
from adalink_jax.data.feature_converter import Batch, FeatureConverter
from adalink_jax.data.images import KEY_BYTES, count_transparent, counting_transparent
from adalink_jax.data.task_protocol import Example
from adalink_jax.data.user_files.file_task import LoadedFileTask
from adalink_jax.errors import UserError

ENDLESS = 2**40  # batches
TRANSPARENT = "transparent"  # beside a batch: the keys of its images that `counting_transparent` counts


class _Batches:
    """The batches of all epochs in sequence, at random access by number."""

    def __init__(
        self, task: LoadedFileTask, converter: FeatureConverter, batch_size: int, seed: int, rows: Sequence[int]
    ):
        self._task, self._converter, self._seed = task, converter, seed
        self._batch_size, self._rows = batch_size, tuple(rows)
        self.per_epoch = len(task.splits["train"]) // batch_size

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Batch:
        epoch, number = divmod(index, self.per_epoch)
        examples = _epoch(self._task, epoch_seed(self._seed, epoch))
        with counting_transparent() as keys:
            batch = self._converter([examples[number * self._batch_size + row] for row in self._rows])
        return batch | {TRANSPARENT: np.frombuffer(b"".join(keys), np.uint8)}


@functools.lru_cache(2)
def _epoch(task: LoadedFileTask, seed: int) -> Sequence[Example]:
    return cast(Sequence[Example], task.dataset("train", seed))  # grain needs only len and []


class WorkerIterator(EpochIterator):
    """The batches and states of an `EpochIterator`; each worker makes whole batches, of this host's rows only."""

    def __init__(
        self,
        task: LoadedFileTask,
        converter: FeatureConverter,
        batch_size: int,
        seed: int,
        rows: Sequence[int] | None = None,
    ):
        """Args:
          task: the task to read; its `workers` is the number of processes.
          converter, batch_size, seed, rows: see `EpochIterator`.

        Raises:
          UserError: if there are fewer examples than a batch.
        """
        super().__init__(lambda seed, start: task.examples("train", seed, start), converter, batch_size, seed, rows)
        self._source, self._workers = _Batches(task, converter, batch_size, seed, self._rows), task.workers
        if not self._source.per_epoch:
            raise UserError(f"The data has fewer examples than the batch size, {batch_size}.")

    def __next__(self) -> Batch:
        if self._batches is None:
            self._batches = self._open(self._epoch * self._source.per_epoch + self._batch)
        if self._batch == self._source.per_epoch:
            self._epoch, self._batch = self._epoch + 1, 0
        self._batch += 1
        batch = next(self._batches)
        keys = batch.pop(TRANSPARENT).reshape(-1, KEY_BYTES)
        count_transparent({key.tobytes() for key in keys})
        return batch

    def _open(self, start: int) -> Iterator[Batch]:
        """All batches from number `start` on, counted over all epochs."""
        import grain
        from absl import flags

        if not flags.FLAGS.is_parsed():  # grain reads absl flags of its own
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=2)
        read_options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)  # of whole batches
        return iter(grain.MapDataset.source(self._source)[start:].to_iter_dataset(read_options).mp_prefetch(options))
