"""The batches of a task: endless ones to train on, and each example once to evaluate on."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from adalink_jax.data.batch_order import BatchIterator, EpochIterator, ExamplesOfEpoch, OwnRowsIterator
from adalink_jax.data.feature_converter import Batch, FeatureConverter
from adalink_jax.data.packed_examples import OwnPackedIterator, PackedIterator
from adalink_jax.data.task_protocol import Example, MeasuredTask, NumberedTask, Task
from adalink_jax.data.tasks import DatasetConfig
from adalink_jax.data.user_files.file_task import LoadedFileTask
from adalink_jax.data.user_files.workers import WorkerIterator
from adalink_jax.errors import UserError


def train_batches(
    task: Task, dataset: DatasetConfig, converter: FeatureConverter, rows: Sequence[int] | None = None
) -> BatchIterator:
    """Returns the batches of the training split, in the order of `dataset.seed`; of each batch only `rows`, if given.

    Of a `NumberedTask` only these rows are read (packed ones only of a `MeasuredTask`), unless `train_examples` are drawn; of other tasks all.

    Raises:
      UserError: from `next`, if the split has fewer examples than a batch (packed: none) or than `dataset.train_examples`.
    """
    converter = dataclasses.replace(converter, task_name=task.name)
    if not dataset.pack and dataset.train_examples is None and isinstance(task, LoadedFileTask) and task.workers:
        return WorkerIterator(task, converter, dataset.batch_size, dataset.seed, rows)
    if not dataset.pack and dataset.train_examples is None and isinstance(task, NumberedTask):
        at, size = functools.partial(task.examples_at, "train"), functools.partial(task.size, "train")
        return OwnRowsIterator(at, size, converter, dataset.batch_size, dataset.seed, rows)
    if dataset.pack and dataset.train_examples is None and isinstance(task, MeasuredTask):
        return OwnPackedIterator(task, converter, dataset.batch_size, dataset.seed, rows)
    examples: ExamplesOfEpoch = lambda seed, start: task.examples("train", seed, start)
    if dataset.train_examples is not None:
        examples = _few(examples, dataset.train_examples, dataset.seed)
    iterator = PackedIterator if dataset.pack else EpochIterator
    return iterator(examples, converter, dataset.batch_size, dataset.seed, rows)


def _few(examples: ExamplesOfEpoch, count: int, seed: int) -> ExamplesOfEpoch:
    """The first `count` examples in the order of `seed`, reordered for each epoch."""

    @functools.cache
    def few() -> list[Example]:
        first = list(itertools.islice(examples(seed, 0), count))
        if len(first) < count:
            raise UserError(f"TRAIN_EXAMPLES is {count}, and the training split has {len(first)}; lower it.")
        return first

    return lambda epoch, start: [few()[i] for i in np.random.default_rng(epoch).permutation(count)[start:]]


def padded_batches(
    examples: Iterable[Example], converter: FeatureConverter, batch_size: int, rows: Sequence[int] | None = None
) -> Iterator[tuple[Batch, list[Example]]]:
    """Yields each example once, in order, as `(batch, its examples)`; the last batch is padded to the same shape.

    Rows beyond the examples are padding and have loss weight 0. With `rows` (ascending) a batch holds only these rows.
    """
    rows, source = range(batch_size) if rows is None else rows, iter(examples)
    while chunk := list(itertools.islice(source, batch_size)):
        local = [chunk[row] for row in rows if row < len(chunk)]
        batch = converter(local or chunk[:1], len(rows))
        yield batch if local else {name: np.zeros_like(x) for name, x in batch.items()}, chunk
