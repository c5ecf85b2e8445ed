"""seqio tasks and mixtures behind the `Task` protocol. TensorFlow never takes an accelerator."""

import difflib
import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf

from adalink_jax.data.feature_converter import has_image
from adalink_jax.errors import UserError

for _kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], _kind)

SHIPPED_TASKS = "adalink_jax.data.seqio_tasks"
CHUNK = 64  # examples that cross from TensorFlow at once


class SeqioTask:
    """A seqio task, or a mixture (which can be trained on, not scored)."""

    notes = ()

    def __init__(self, task: seqio.Task | seqio.Mixture, lengths, use_cached: bool):
        self._task, self._use_cached = task, use_cached
        features = task.output_features
        self._lengths = {name: lengths.get(name) for name in features}
        self._vocabulary = features["targets"].vocabulary
        self.name = task.name
        self.vocab_size = max(feature.vocabulary.vocab_size for feature in features.values())
        self.has_images = has_image(features)

    def examples(self, split: str, seed: int | None = None, start: int = 0) -> Iterable[dict]:
        """See `Task.examples`. The order is seqio's own for this seed."""
        dataset = self._task.get_dataset(
            self._lengths, split=split, shuffle=seed is not None, seed=seed, num_epochs=1, trim_output_features=True,
            use_cached=self._use_cached,
        )  # fmt: skip
        return _rows(dataset.skip(start))

    def encode(self, text: str) -> list[int]:
        """Text -> ids, without EOS."""
        return self._task.output_features["inputs"].vocabulary.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Predicted ids, up to the first EOS, as text."""
        ids = np.asarray(ids).tolist()
        eos = self._vocabulary.eos_id
        return self._vocabulary.decode(ids[: ids.index(eos)] if eos in ids else ids)

    def score(self, examples: Sequence[dict], predictions: Sequence[str]) -> dict[str, float]:
        """The task's own metrics, after its own postprocessing."""
        postprocess = self._task.postprocess_fn
        targets = [postprocess(self.decode(ex["targets"]), example=ex, is_target=True) for ex in examples]
        outputs = [postprocess(text, example=ex, is_target=False) for ex, text in zip(examples, predictions)]
        scores = {}
        for metric in self._task.metric_fns:
            scores.update({name: float(value) for name, value in metric(targets, outputs).items()})
        return scores


def _rows(dataset: tf.data.Dataset) -> Iterator[dict]:
    """The elements, as `as_numpy_iterator` gives them. Many cross from TensorFlow at once, where their shapes allow it: one by one the
    crossing takes longer than most preprocessing."""
    specs = tf.nest.flatten(dataset.element_spec)
    if not all(
        isinstance(spec, tf.TensorSpec) and (spec.shape.rank in (0, 1) or spec.shape.is_fully_defined())
        for spec in specs
    ):
        yield from dataset.prefetch(64).as_numpy_iterator()
        return
    for chunk in dataset.ragged_batch(CHUNK).prefetch(1).as_numpy_iterator():
        columns = {
            name: column if isinstance(column, np.ndarray) else np.split(column.values, column.row_splits[1:-1])
            for name, column in chunk.items()
        }
        for values in zip(*columns.values()):
            yield dict(zip(columns, values))


def use_folders(tfds_data_dir: str | None, cache_dirs: Sequence[str]) -> None:
    """t5x's flags: where the data sets of `TfdsDataSource`s lie, and further folders of what seqio has cached."""
    if tfds_data_dir:
        seqio.set_tfds_data_dir_override(tfds_data_dir)
    seqio.add_global_cache_dirs(list(cache_dirs))


def get_tasks(
    name: str, module: str | None, lengths: Mapping[str, int], use_cached: bool = False
) -> tuple[SeqioTask, list[SeqioTask]]:
    """The task or mixture `name`, and the tasks in it; `module` (None: the shipped one) registers them.

    Raises:
      UserError: if there is no such task, with the nearest names; if its data, or what should be cached of it, are not there.
    """
    declared = importlib.import_module(module or SHIPPED_TASKS)
    if hasattr(declared, "register"):
        declared.register()
    known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    if name not in known:
        near = difflib.get_close_matches(name, known, 3) or sorted(known)
        raise UserError(f"There is no task or mixture {name!r} (MIXTURE_OR_TASK_NAME); nearest: {', '.join(near)}.")
    found = seqio.get_mixture_or_task(name)
    tasks = seqio.get_subtasks(found)
    for task in tasks:
        if use_cached and task.cache_dir is None:
            raise UserError(
                f"USE_CACHED_TASKS is True, and {task.name} is not cached in {', '.join(seqio.get_global_cache_dirs()) or 'any folder'}; name "
                f"its folder with --seqio_additional_cache_dirs, or set USE_CACHED_TASKS to False."
            )
        if hasattr(task.source, "check") and not use_cached:
            task.source.check()
    return SeqioTask(found, lengths, use_cached), [SeqioTask(task, lengths, use_cached) for task in tasks]
