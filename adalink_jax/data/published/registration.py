"""Published data -> seqio tasks: rows are read, put in their part, written as text, and declared under a name.

Rows and forms are plain Python, the same for files and for TFDS, so that a task is written down once. A row is read when
it is asked for; of files the text of a split is kept in memory, and images are named, not read.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf
from etils import epath

from adalink_jax.data import metrics
from adalink_jax.data.published.settings import PublishedData
from adalink_jax.data.splits import Splits
from adalink_jax.data.vocabularies import SentencePieceVocabulary, find_vocabulary
from adalink_jax.errors import UserError

ONE, MANY, GROUPED, GROUPED_MANY = "one", "many", "grouped", "grouped many"
_BETWEEN = "\x1f"  # references in one string: ASCII's unit separator
_IMAGE = seqio.Feature(seqio.PassThroughVocabulary(0), add_eos=False, dtype=tf.string, rank=0)


@dataclasses.dataclass(frozen=True)
class Example:
    """What a task says of a row.

    Attributes:
      inputs, targets: the text.
      references: what predictions are compared with; the target itself by default.
      group: which examples are scored together, for metrics that ask.
      image: the image, of tasks with images: bytes, or the path of a file, as the task's `image` says.
    """

    inputs: str
    targets: str
    references: tuple[str, ...] = ()
    group: str = ""
    image: bytes | str | None = None


@dataclasses.dataclass(frozen=True)
class PublishedTask:
    """A task over published rows.

    Attributes:
      name: of the seqio task.
      rows: `(published split, seed) -> rows`; a seed shuffles what is read from TFDS.
      form: `(row, whether for training) -> examples`.
      identity: row -> what decides its part, see `splits`.
      splits: ours -> published.
      metrics: functions of targets and predictions.
      scored: what metrics get as a target: `ONE` reference; a tuple of `MANY`; a dict `{"group": ..., "value": ...}` with
        one (`GROUPED`) or many (`GROUPED_MANY`); or a function, as seqio's `postprocess_fn`.
      image: the feature of the image: None, "image" (bytes) or "image_file" (a path).
      keep: whether the text of a split is kept in memory, and shuffled as a whole.
    """

    name: str
    rows: Callable[[str, int | None], Iterable[dict]]
    form: Callable[[dict, bool], Iterable[Example]]
    identity: Callable[[dict], str]
    splits: Splits
    metrics: Sequence[Callable]
    scored: str | Callable = ONE
    image: str | None = None
    keep: bool = True


class _Source(seqio.FunctionDataSource):
    """The examples of a task, as seqio reads them."""

    def __init__(self, task: PublishedTask):
        self._task = task
        self._kept: dict[str, dict[str, np.ndarray]] = {}
        super().__init__(self._dataset, splits=list(task.splits))

    def check(self) -> None:
        """Reads a row of each split.

        Raises:
          UserError: for what is missing, or of another form.
        """
        for split in dict.fromkeys(part.split for part in self._task.splits.values()):
            if next(iter(self._task.rows(split, None)), None) is None:
                raise UserError(f"The data of {self._task.name} have no rows in {split}; copy them again.")

    def _dataset(self, split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        seed = seed if shuffle_files else None
        if not self._task.keep:
            names = ["inputs", "targets", "references", "group", *([self._task.image] if self._task.image else [])]
            stream = lambda: (self._features(example) for example in self._examples(split, seed))
            signature = {name: tf.TensorSpec([], tf.string) for name in names}
            return tf.data.Dataset.from_generator(stream, output_signature=signature)
        if split not in self._kept:
            rows = [self._features(example) for example in self._examples(split, None)]
            self._kept[split] = {name: np.array([row[name] for row in rows], object) for name in (rows or [{}])[0]}
        kept = self._kept[split]
        if seed is not None:
            order = np.random.default_rng(seed).permutation(len(kept["inputs"]))
            kept = {name: column[order] for name, column in kept.items()}
        return tf.data.Dataset.from_tensor_slices(kept)

    def _features(self, example: Example) -> dict[str, str | bytes]:
        features = {
            "inputs": example.inputs,
            "targets": example.targets,
            "references": _BETWEEN.join(example.references or (example.targets,)),
            "group": example.group,
        }
        return features | ({self._task.image: example.image} if self._task.image else {})

    def _examples(self, split: str, seed: int | None) -> Iterator[Example]:
        part = self._task.splits[split]
        for row in self._task.rows(part.split, seed):
            if part.holds(self._task.identity(row)):
                yield from self._task.form(row, split == "train")


def tfds_rows(data: PublishedData, name: str, image: str | None = None) -> Callable[[str, int | None], Iterator[dict]]:
    """Rows of a data set that TFDS prepared in `data.data_dir`, such as "glue/cola", with text as `str`.

    Args:
      data: where it is.
      name: of the data set, with its configuration.
      image: the feature that stays an encoded image.

    Raises:
      UserError: from a call, if it was not prepared, or has no such split.
    """

    def rows(split: str, seed: int | None = None) -> Iterator[dict]:
        import tensorflow_datasets as tfds

        folder = epath.Path(data.data_dir) / name
        versions = (
            [path for path in folder.iterdir() if (path / "dataset_info.json").exists()] if folder.is_dir() else []
        )
        if not versions:
            raise UserError(
                f"There is no TFDS data set in {folder}; prepare it where there is a network (tfds build {name} "
                f"--data_dir={data.data_dir}), or set DATA_DIR."
            )
        newest = max(versions, key=lambda path: [int(x) for x in path.name.split(".")])
        builder = tfds.builder_from_directory(str(newest))
        parts = [part for part in split.split("+") if part in builder.info.splits]
        if split.split("+")[0] not in parts:
            raise UserError(f"{newest} has no split {split}; it has {', '.join(builder.info.splits)}.")
        found = builder.as_dataset(
            split="+".join(parts),
            shuffle_files=seed is not None,
            decoders={image: tfds.decode.SkipDecoding()} if image else None,
            read_config=tfds.ReadConfig(shuffle_seed=seed, try_autocache=False),
        )
        return (_as_text(row, image) for row in tfds.as_numpy(found))

    return rows


def metric(name: str, **settings) -> Callable[[Sequence, Sequence], Mapping[str, float]]:
    """`adalink_jax.data.metrics.NAME`, with its settings, as seqio takes a metric; looked up when it scores."""

    def scores(targets, predictions):
        try:
            function = operator.attrgetter(name)(metrics)
        except AttributeError as e:
            raise UserError(f"This version of adalink_jax.data.metrics has no {name}; install the newest.") from e
        return function(targets, predictions, **settings)

    return scores


def add_tasks(tasks: Iterable[PublishedTask], vocabulary: str) -> None:
    """Declares tasks to seqio; those of the same names that were there are replaced.

    Args:
      tasks: what to declare.
      vocabulary: as for `load_vocabulary`.

    Raises:
      UserError: if there is no such vocabulary.
    """
    ids = seqio_vocabulary(vocabulary)
    for task in tasks:
        replace(seqio.TaskRegistry, task.name)
        seqio.TaskRegistry.add(
            task.name,
            source=_Source(task),
            preprocessors=[_tokenize, seqio.preprocessors.append_eos_after_trim],
            output_features=output_features(ids, task.image),
            metric_fns=list(task.metrics),
            postprocess_fn=task.scored if callable(task.scored) else functools.partial(_compared, scored=task.scored),
        )


def add_mixture(name: str, rates: Mapping[str, float]) -> None:
    """Declares a mixture, of task -> rate; one of the same name that was there is replaced."""
    replace(seqio.MixtureRegistry, name)
    seqio.MixtureRegistry.add(name, list(rates.items()))


def add_twin_without_image(name: str, twin: str | None = None) -> str:
    """Declares a task of text once more, with the feature `image` empty, for mixtures with tasks of images.

    Args:
      name: of the task.
      twin: of the other one; `NAME_blank` by default.

    Returns:
      The other one's name.
    """
    task, twin = seqio.TaskRegistry.get(name), twin or f"{name}_blank"
    replace(seqio.TaskRegistry, twin)
    seqio.TaskRegistry.add(
        twin,
        source=task.source,
        preprocessors=[*task.preprocessors, lambda dataset: dataset.map(lambda example: {**example, "image": ""})],
        output_features={**task.output_features, "image": _IMAGE},
        metric_fns=task.metric_fns,
        postprocess_fn=task.postprocess_fn,
    )
    return twin


def replace(registry, name: str) -> None:
    """Makes `name` free in a registry of seqio."""
    if name in registry.names():
        registry.remove(name)


def seqio_vocabulary(vocabulary: str) -> seqio.Vocabulary:
    """seqio's vocabulary with the ids of `load_vocabulary(vocabulary)`."""
    file = find_vocabulary(vocabulary)
    if file is None:
        return seqio.ByteVocabulary()
    extra_ids = SentencePieceVocabulary(file).vocab_size - SentencePieceVocabulary(file, extra_ids=0).vocab_size
    return seqio.SentencePieceVocabulary(str(file), extra_ids)


def output_features(ids: seqio.Vocabulary, image: str | None) -> dict[str, seqio.Feature]:
    """Those of a task: text in and out with EOS, and the image as it lies."""
    features = {name: seqio.Feature(ids, add_eos=True) for name in ("inputs", "targets")}
    if image:
        features[image] = _IMAGE
    return features


def _tokenize(dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]) -> tf.data.Dataset:
    text = {name: output_features[name] for name in ("inputs", "targets")}  # no second copy of the image
    return seqio.preprocessors.tokenize(dataset, text)


def _compared(text: str, example: dict, is_target: bool, scored: str):
    if not is_target:
        return text
    references = tuple(example["references"].decode().split(_BETWEEN))
    value = references if scored in (MANY, GROUPED_MANY) else references[0]
    return {"group": example["group"].decode(), "value": value} if scored in (GROUPED, GROUPED_MANY) else value


def _as_text(value, image: str | None = None):
    if isinstance(value, dict):
        return {name: x if name == image else _as_text(x) for name, x in value.items()}
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray):
        return [_as_text(x) for x in value.tolist()]
    return value.item() if isinstance(value, np.generic) else value
