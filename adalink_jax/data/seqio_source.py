"""seqio tasks and mixtures behind the `Task` protocol. Importing this module keeps TensorFlow off all accelerators."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import seqio
import tensorflow as tf

from adalink_jax import configuration
from adalink_jax.data.feature_converter import has_image
from adalink_jax.data.label_sets import LabelSets
from adalink_jax.data.mixing import ENDLESS, MixedNumbers, NumberedSource, mixed
from adalink_jax.data.mixing_rates import MixtureOf
from adalink_jax.data.read_ahead import read_ahead
from adalink_jax.data.seqio_vocabulary import HuggingFaceVocabulary, check_mixed, check_task
from adalink_jax.data.task_cache.cached_task import CachedTask
from adalink_jax.data.task_protocol import Example, Numbered
from adalink_jax.data.transformers_vocabulary import EOS
from adalink_jax.errors import UserError
from adalink_jax.near_names import near

for _kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], _kind)

T = TypeVar("T")
SHIPPED_TASKS = "adalink_jax.data.seqio_tasks"
CHUNK = 64  # examples converted from TensorFlow at once


class SeqioTask:
    """A seqio task."""

    notes = ()
    labels: LabelSets | None = None

    def __init__(self, task: seqio.Task | seqio.Mixture, lengths: Mapping[str, int], use_cached: bool = False):
        self._task, self._use_cached = task, use_cached
        features = task.output_features
        # None leaves a feature's length unlimited, which seqio's annotation omits.
        self._lengths = cast(Mapping[str, int], {name: lengths.get(name) for name in features})
        self._vocabulary = features["targets"].vocabulary
        self.name, self.splits = task.name, task.splits
        eos = self._vocabulary.eos_id
        self.eos = EOS if eos is None else int(eos)
        self.vocab_size = max(feature.vocabulary.vocab_size for feature in features.values())
        self.has_images = has_image(features)
        self._known_sizes: dict[str, int] = {}

    def examples(self, split: str, seed: int | None = None, start: int = 0) -> Iterable[Example]:
        """See `Task.examples`. The order is seqio's for this seed."""
        return _rows(self._dataset(split, seed).skip(start))

    def size(self, split: str, seed: int) -> int:
        """The number of examples of a pass with this seed. If TensorFlow does not know it, the examples are counted."""
        if (known := self.known_size(split)) is not None:
            return known
        return int(self._dataset(split, seed).reduce(np.int64(0), lambda count, _: count + 1))

    def known_size(self, split: str) -> int | None:
        """The number of examples of a split; None if TensorFlow would have to count them."""
        if split not in self._known_sizes:
            self._known_sizes[split] = int(self._dataset(split, 0).cardinality())
        known = self._known_sizes[split]
        return known if known >= 0 else None

    def fixed(self, split: str) -> Iterable[Example]:
        """The examples in the source's order, the same in each call: what preprocessing draws at random is drawn by one seed."""
        return _rows(self._dataset(split, 0, shuffle=False))

    def source_files(self, split: str) -> Sequence[str]:
        """The files that a split is read from; none for a function, and with seqio's cache: they do not state them."""
        source = cast(seqio.Task, self._task).source
        if self._use_cached or not isinstance(source, seqio.FileDataSource | seqio.TfdsDataSource):
            return ()
        return source.list_shards(split)

    def _dataset(self, split: str, seed: int | None, shuffle: bool | None = None) -> tf.data.Dataset:
        return self._task.get_dataset(
            self._lengths, split=split, shuffle=seed is not None if shuffle is None else shuffle, seed=seed, num_epochs=1,
            trim_output_features=True, use_cached=self._use_cached,
        )  # fmt: skip

    def encode(self, text: str) -> list[int]:
        """See `Task.encode`."""
        vocabulary = self._task.output_features["inputs"].vocabulary
        if isinstance(vocabulary, HuggingFaceVocabulary):
            return vocabulary.input_ids(text)
        return [*vocabulary.encode(text), cast(int, vocabulary.eos_id)]

    def decode(self, ids: Sequence[int]) -> str:
        """Converts predicted ids, up to the first EOS, to text."""
        ids = np.asarray(ids).tolist()
        eos = self._vocabulary.eos_id
        return self._vocabulary.decode(ids[: ids.index(eos)] if eos in ids else ids)

    def score(self, examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, float]:
        """Returns the task's metrics, after its postprocessing."""
        task = cast(seqio.Task, self._task)  # mixtures are not scored
        postprocess = task.postprocess_fn
        targets = [postprocess(self.decode(ex["targets"]), example=ex, is_target=True) for ex in examples]
        outputs = [postprocess(text, example=ex, is_target=False) for ex, text in zip(examples, predictions)]
        scores = (cast(dict[str, Any], metric(targets, outputs)) for metric in task.metric_fns)
        return {name: float(value) for of_metric in scores for name, value in of_metric.items()}


class SeqioMixture(SeqioTask):
    """A seqio mixture, which can be trained on but not scored; the examples of a seed never end (see `mixing`)."""

    def __init__(
        self,
        mixture: seqio.Mixture,
        tasks: Sequence[SeqioTask | CachedTask],
        rate: Callable[[SeqioTask | CachedTask], float],
        lengths: Mapping[str, int],
    ):
        """Args: the mixture, its tasks, what gives the rate of a task, and the lengths of their examples."""
        super().__init__(mixture, lengths)
        sample = getattr(mixture, "_sample_fn", None)
        if getattr(sample, "func", sample) not in (None, tf.data.Dataset.sample_from_datasets):
            raise UserError(f"The mixture {self.name} has a sample_fn, and examples are drawn by rates; leave it out.")
        self._tasks, self._rate = tasks, rate

    def with_split(self, split: str) -> tuple[list[Any], list[float]]:
        """The tasks that have a split, and their rates."""
        tasks = [task for task in self._tasks if split in task.splits]
        return tasks, [self._rate(task) for task in tasks]

    def examples(self, split: str, seed: int | None = None, start: int = 0) -> Iterable[Example]:
        """Yields examples of the tasks that have the split, at the mixture's rates; without a seed, all of one task after another."""
        tasks, rates = self.with_split(split)
        if seed is None:
            in_order = itertools.chain.from_iterable(task.examples(split) for task in tasks)
            return itertools.islice(in_order, start, None)
        return mixed(tasks, rates, split, seed, start)


class CachedMixture(SeqioMixture):
    """A mixture of cached tasks: a `NumberedTask` with the examples of `SeqioMixture`."""

    @property
    def digest(self) -> str:
        """The digests of its tasks."""
        return " ".join(task.digest for task in self._tasks if isinstance(task, CachedTask))

    def size(self, split: str, seed: int) -> int:
        """Without end."""
        return ENDLESS

    @functools.lru_cache(8)  # noqa: B019  # a run has one mixture
    def dataset(self, split: str, seed: int | None) -> Numbered[Example]:
        """See `NumberedTask.dataset`.

        Raises:
          UserError: without a seed: only evaluation reads in order, and it reads single tasks.
        """
        return self._by_number(split, seed, lambda task, split, seed: task.dataset(split, seed))

    @functools.lru_cache(8)  # noqa: B019  # a run has one mixture
    def token_counts(self, split: str, seed: int | None) -> Numbered[Sequence[int]]:
        """See `MeasuredTask.token_counts`; raises as `dataset`."""
        return self._by_number(split, seed, lambda task, split, seed: task.token_counts(split, seed))

    def _by_number(
        self, split: str, seed: int | None, of_pass: Callable[[NumberedSource, str, int], Numbered[T]]
    ) -> Numbered[T]:
        if seed is None:
            raise UserError(f"{self.name} is a mixture, whose examples have numbers only in the order of a seed.")
        tasks, rates = self.with_split(split)
        return MixedNumbers(cast(list[NumberedSource], tasks), rates, split, seed, of_pass)

    def examples_at(self, split: str, seed: int | None, numbers: Sequence[int]) -> Iterable[Example]:
        """See `NumberedTask.examples_at`."""
        return read_ahead(self.dataset(split, seed), numbers)


def _rows(dataset: tf.data.Dataset) -> Iterator[Example]:
    """The elements, equal to those of `as_numpy_iterator`.

    Where their shapes allow it, many are converted from TensorFlow at once: one by one this takes longer than most
    preprocessing.
    """
    specs = tf.nest.flatten(dataset.element_spec)
    if not all(
        isinstance(spec, tf.TensorSpec) and (spec.shape.rank in (0, 1) or spec.shape.is_fully_defined())
        for spec in specs
    ):
        yield from cast(Iterator[Example], dataset.prefetch(64).as_numpy_iterator())
        return
    for chunk in cast(Iterator[Example], dataset.ragged_batch(CHUNK).prefetch(1).as_numpy_iterator()):
        columns = {
            name: column if isinstance(column, np.ndarray) else np.split(column.values, column.row_splits[1:-1])
            for name, column in chunk.items()
        }
        for values in zip(*columns.values()):
            yield dict(zip(columns, values))


def use_folders(tfds_data_dir: str | None, cache_dirs: Sequence[str]) -> None:
    """Applies t5x's flags: the folder of the data sets of `TfdsDataSource`s, and more folders of seqio's cache."""
    if tfds_data_dir:
        seqio.set_tfds_data_dir_override(tfds_data_dir)
    seqio.add_global_cache_dirs(list(cache_dirs))


def get_tasks(
    name: str,
    module: str | None,
    lengths: Mapping[str, int],
    use_cached: bool = False,
    cache: str | None = None,
    mixture_of: MixtureOf | None = None,
) -> tuple[SeqioTask | CachedTask, Sequence[SeqioTask | CachedTask]]:
    """Returns the task or mixture `name`, and the tasks in it.

    Args:
      name: the task or mixture; with `mixture_of`, any name.
      module: module that registers it; None for the bundled tasks.
      lengths: `{"inputs": L, "targets": T}`.
      use_cached: whether to read seqio's cache.
      cache: the folder of `adalink cache-task`; None reads the tasks themselves.
      mixture_of: the tasks to mix, and their rates.

    Raises:
      UserError: as `find_tasks`, and if there is no cache of a task, or one of other examples.
    """
    names = [name] if mixture_of is None else list(mixture_of.tasks)
    registered = find_tasks(names, module, use_cached, reads_source=cache is None)
    if mixture_of is not None and (others := set(names) - {one.name for one in registered}):
        raise UserError(f"MIXTURE names {min(others)}, which is a mixture; name its tasks.")
    mixture = seqio.get_mixture_or_task(name) if mixture_of is None else seqio.Mixture(name, [(x, 1.0) for x in names])
    tasks = [SeqioTask(task, lengths, use_cached) for task in seqio.get_subtasks(mixture)]
    scored = tasks if cache is None else [CachedTask(task, cache, lengths) for task in tasks]
    if not isinstance(mixture, seqio.Mixture):
        return scored[0], scored
    if mixture_of is None:
        rate = lambda task: mixture.get_rate(cast(seqio.Task, seqio.TaskRegistry.get(task.name)))
    else:
        rate = lambda task: mixture_of.rate(task.name, task)
    return (SeqioMixture if cache is None else CachedMixture)(mixture, scored, rate, lengths), scored


def find_tasks(
    names: Sequence[str], module: str | None, use_cached: bool = False, reads_source: bool = True
) -> list[seqio.Task]:
    """The tasks that names of tasks and mixtures stand for, once it is known that they can be read, and mixed if they are several.

    Args:
      names: of tasks and mixtures.
      module: module that registers them; None for the bundled tasks.
      use_cached: whether seqio's cache is read.
      reads_source: whether the tasks' own sources are read, unless seqio's cache is.

    Raises:
      UserError: if the module cannot be imported, for an unknown name (the message gives the nearest), for data or a cache of seqio that are
        missing, if EOS ends inputs that the vocabulary does not end with it, and for tasks whose features or vocabularies differ.
    """
    tasks = _registered(module, names)
    for task in tasks:
        check_task(task)
    check_mixed(tasks)
    for task in tasks:
        if use_cached and task.cache_dir is None:
            folders = ", ".join(seqio.get_global_cache_dirs()) or "any folder"
            raise UserError(
                f"USE_CACHED_TASKS is True, and {task.name} is not cached in {folders}; name its folder with "
                f"--seqio_additional_cache_dirs, or set USE_CACHED_TASKS to False."
            )
        check = getattr(task.source, "check", None)  # tasks of `published` find missing files before training
        if check is not None and reads_source and not use_cached:
            check()
    return tasks


def _registered(module: str | None, names: Sequence[str]) -> list[seqio.Task]:
    """Imports `module` (None: the bundled tasks), and returns the tasks that the names of tasks and mixtures stand for."""
    registering = configuration.import_module(module or SHIPPED_TASKS, "MIXTURE_OR_TASK_MODULE")
    if hasattr(registering, "register"):
        registering.register()
    known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    for name in names:
        if name not in known:
            nearest = near(name, known) or sorted(known)
            raise UserError(
                f"There is no task or mixture {name!r} (MIXTURE_OR_TASK_NAME); nearest: {', '.join(nearest)}."
            )
    tasks = (task for name in names for task in seqio.get_subtasks(seqio.get_mixture_or_task(name)))
    return list({task.name: task for task in tasks}.values())
