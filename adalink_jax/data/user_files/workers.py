"""Batches of a file task that are made in processes ahead of their use (grain's)."""

import functools
from collections.abc import Sequence

import numpy as np

from adalink_jax.data.feature_converter import FeatureConverter
from adalink_jax.data.iterators import EpochIterator, epoch_seed
from adalink_jax.errors import UserError

ENDLESS = 2**40  # batches


class _Batches:
    """Batch `i` of all epochs, one after the other, at random access."""

    def __init__(self, task, converter: FeatureConverter, batch_size: int, seed: int, mine: Sequence[int]):
        self._task, self._converter, self._seed = task, converter, seed
        self._batch_size, self._mine = batch_size, tuple(mine)
        self.per_epoch = len(task.splits["train"]) // batch_size

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        epoch, batch = divmod(number, self.per_epoch)
        data = _epoch(self._task, epoch_seed(self._seed, epoch))
        return self._converter([data[batch * self._batch_size + row] for row in self._mine])


@functools.lru_cache(2)
def _epoch(task, seed: int):
    return task.dataset("train", seed)


class WorkerIterator(EpochIterator):
    """The batches of an `EpochIterator`, with the same states; each process makes whole batches, of this host's rows alone."""

    def __init__(
        self, task, converter: FeatureConverter, batch_size: int, seed: int, rows: Sequence[int] | None = None
    ):
        """Args:
          task: a `LoadedFileTask`; its `workers` is how many processes.
          converter, batch_size, seed, rows: see `EpochIterator`.

        Raises:
          UserError: if there are fewer examples than a batch.
        """
        super().__init__(None, converter, batch_size, seed, rows)
        self._batches, self._workers = _Batches(task, converter, batch_size, seed, self._mine), task.workers
        if not self._batches.per_epoch:
            raise UserError(f"The data has fewer examples than the batch size, {batch_size}.")

    def __next__(self) -> dict[str, np.ndarray]:
        if self._opened is None:
            self._opened = self._open(None, self._epoch * self._batches.per_epoch + self._batch)
        if self._batch == self._batches.per_epoch:
            self._epoch, self._batch = self._epoch + 1, 0
        self._batch += 1
        return next(self._opened)

    def _open(self, seed, batch: int):
        import grain
        from absl import flags

        if not flags.FLAGS.is_parsed():  # grain asks for flags of its own
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=2)
        reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)  # of whole batches
        return iter(grain.MapDataset.source(self._batches)[batch:].to_iter_dataset(reading).mp_prefetch(options))
