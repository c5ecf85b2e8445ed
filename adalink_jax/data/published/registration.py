"""Declares published data as seqio tasks: rows are read, selected for a split, and written as text.

Rows and forms are plain Python, the same for files and for TFDS, so that a task is defined once. Rows are read on demand; from
files, the text of a split is kept in memory, and images are named, not read.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import seqio
import tensorflow as tf
from seqio.utils import Feature
from seqio.vocabularies import Vocabulary

from adalink_jax.data import metrics
from adalink_jax.data.published.settings import PublishedData
from adalink_jax.data.seqio_vocabulary import framed, seqio_vocabulary, tokenize
from adalink_jax.data.splits import Splits
from adalink_jax.errors import UserError
from adalink_jax.files.places import path_of

ONE, MANY, GROUPED, GROUPED_MANY = "one", "many", "grouped", "grouped many"
Row = dict[str, Any]  # of a published file, or of TFDS
Rows = Callable[[str, int | None], Iterable[Row]]  # (published split, seed) -> rows
Metric = Callable[[Sequence, Sequence], Mapping[str, float]]
_SEPARATOR = "\x1f"  # between references in one string: ASCII's unit separator
_IMAGE = seqio.Feature(seqio.PassThroughVocabulary(0), add_eos=False, dtype=tf.string, rank=0)


@dataclasses.dataclass(frozen=True)
class TextExample:
    """A row written as text.

    Attributes:
      inputs, targets: the text.
      references: texts to compare predictions with; the target by default.
      group: examples of the same group are scored together, by metrics that do so.
      image: bytes, or the path of a file, according to the task's `image`; None without images.
    """

    inputs: str
    targets: str
    references: tuple[str, ...] = ()
    group: str = ""
    image: bytes | str | None = None


Example = TextExample  # its name until version 0.1


@dataclasses.dataclass(frozen=True)
class PublishedTask:
    """A task over published rows.

    Attributes:
      name: of the seqio task.
      rows: `(published split, seed) -> rows`; a seed shuffles what is read from TFDS.
      form: `(row, whether for training) -> examples`.
      identity: maps a row to the text that decides its split, see `splits`.
      splits: split -> part of a published split.
      metrics: functions of targets and predictions.
      scored: what metrics receive as a target: `ONE` reference; a tuple of `MANY`; a dict `{"group": ..., "value": ...}`
        with one (`GROUPED`) or many (`GROUPED_MANY`); or a function like seqio's `postprocess_fn`.
      image: the feature of the image: None, "image" (bytes) or "image_file" (a path).
      keep: whether to keep the text of a split in memory, and shuffle it as a whole.
    """

    name: str
    rows: Rows
    form: Callable[[Row, bool], Iterable[TextExample]]
    identity: Callable[[Row], str]
    splits: Splits
    metrics: Sequence[Metric]
    scored: str | Callable[..., Any] = ONE
    image: str | None = None
    keep: bool = True


class _Source(seqio.FunctionDataSource):
    """The examples of a task, as seqio reads them."""

    def __init__(self, task: PublishedTask, before: str):
        """Args: the task; the text before each of its inputs."""
        self._task, self._before = task, before
        self._columns: dict[str, dict[str, np.ndarray]] = {}  # of the splits that are in memory
        super().__init__(self._dataset, splits=list(task.splits))

    def check(self) -> None:
        """Reads a row of each split.

        Raises:
          UserError: for what is missing or of another form.
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
        if split not in self._columns:
            rows = [self._features(example) for example in self._examples(split, None)]
            self._columns[split] = {name: np.array([row[name] for row in rows], object) for name in (rows or [{}])[0]}
        columns = self._columns[split]
        if seed is not None:
            order = np.random.default_rng(seed).permutation(len(columns["inputs"]))
            columns = {name: column[order] for name, column in columns.items()}
        return tf.data.Dataset.from_tensor_slices(columns)  # pyright: ignore[reportArgumentType]  # takes dicts too

    def _features(self, example: TextExample) -> dict[str, Any]:
        features = {
            "inputs": self._before + example.inputs,
            "targets": example.targets,
            "references": _SEPARATOR.join(example.references or (example.targets,)),
            "group": example.group,
        }
        return features | ({self._task.image: example.image} if self._task.image else {})

    def _examples(self, split: str, seed: int | None) -> Iterator[TextExample]:
        part = self._task.splits[split]
        for row in self._task.rows(part.split, seed):
            if part.holds(self._task.identity(row)):
                yield from self._task.form(row, split == "train")


def tfds_rows(data: PublishedData, name: str, image: str | None = None) -> Rows:
    """Returns a function that reads a data set that TFDS prepared in `data.data_dir`, with text as `str`.

    Args:
      data: the folder.
      name: the data set with its configuration, such as "glue/cola".
      image: the feature that stays an encoded image.

    Raises:
      UserError: from a call, if the data set was not prepared, or has no such split.
    """

    def rows(split: str, seed: int | None = None) -> Iterator[Row]:
        import tensorflow_datasets as tfds

        folder = path_of(data.data_dir) / name
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
        dataset = builder.as_dataset(
            split="+".join(parts),  # pyright: ignore[reportCallIssue]  # a decorator hides the signature
            shuffle_files=seed is not None,
            decoders={image: tfds.decode.SkipDecoding()} if image else None,
            read_config=tfds.ReadConfig(shuffle_seed=seed, try_autocache=False),
        )
        return (_as_text(row, image) for row in cast(Iterable[Row], tfds.as_numpy(dataset)))

    return rows


def image_id(row: Row) -> str:
    """The identity of a row about an image, so that all rows about an image are in the same split."""
    return str(row["image_id"])


def metric(name: str, **settings: Any) -> Metric:
    """Returns `adalink_jax.data.metrics.NAME` with its settings, as a metric of seqio; looked up when it scores."""

    def scores(targets: Sequence, predictions: Sequence) -> Mapping[str, float]:
        try:
            function = operator.attrgetter(name)(metrics)
        except AttributeError as e:
            raise UserError(f"This version of adalink_jax.data.metrics has no {name}; install the newest.") from e
        return function(targets, predictions, **settings)

    return scores


def add_tasks(tasks: Iterable[PublishedTask], data: PublishedData) -> None:
    """Declares tasks to seqio, replacing those of the same names.

    Args:
      tasks: the tasks to declare.
      data: their vocabulary, and what stands for an image in their texts.

    Raises:
      UserError: if there is no such vocabulary.
    """
    ids = seqio_vocabulary(data.vocabulary)
    for task in tasks:
        replace(seqio.TaskRegistry, task.name)
        seqio.TaskRegistry.add(
            task.name,
            source=_Source(task, data.image_text if task.image else ""),  # pyright: ignore[reportArgumentType]  # seqio's classes do not match its protocol
            preprocessors=[_tokenize, seqio.preprocessors.append_eos_after_trim],
            output_features=output_features(ids, task.image),
            metric_fns=list(task.metrics),
            postprocess_fn=task.scored if callable(task.scored) else functools.partial(_compared, scored=task.scored),
        )


def add_mixture(name: str, rates: Mapping[str, float]) -> None:
    """Declares a mixture of tasks with their rates, replacing one of the same name."""
    replace(seqio.MixtureRegistry, name)
    seqio.MixtureRegistry.add(name, list(rates.items()))


def add_twin_without_image(name: str, twin: str | None = None) -> str:
    """Declares a text task again, with an empty feature `image`, for mixtures with image tasks.

    Args:
      name: the task.
      twin: name of the other one; `NAME_blank` by default.

    Returns:
      The name of the other one.
    """
    task, twin = seqio.TaskRegistry.get(name), twin or f"{name}_blank"
    replace(seqio.TaskRegistry, twin)
    seqio.TaskRegistry.add(
        twin,
        source=task.source,  # pyright: ignore[reportArgumentType]  # seqio's classes do not match its protocol
        preprocessors=[*task.preprocessors, lambda dataset: dataset.map(lambda example: {**example, "image": ""})],
        output_features={**task.output_features, "image": _IMAGE},
        metric_fns=task.metric_fns,
        postprocess_fn=task.postprocess_fn,
    )
    return twin


def replace(registry: type[seqio.TaskRegistry] | type[seqio.MixtureRegistry], name: str) -> None:
    """Frees `name` in a registry of seqio."""
    if name in registry.names():
        registry.remove(name)


def output_features(ids: Vocabulary, image: str | None) -> dict[str, Feature]:
    """Returns the features of a task: text in and out with its end, and the image unchanged."""
    features = {
        name: seqio.Feature(ids, add_eos=name == "targets" or not framed(ids)) for name in ("inputs", "targets")
    }
    return features | ({image: _IMAGE} if image else {})


def _tokenize(
    dataset: tf.data.Dataset, output_features: Mapping[str, Feature], sequence_length: Mapping[str, int] | None
) -> tf.data.Dataset:
    text = {name: output_features[name] for name in ("inputs", "targets")}  # no second copy of the image
    return tokenize(dataset, text, sequence_length)


def _compared(text: str, example: Row, is_target: bool, scored: str) -> Any:
    """A postprocessor for `PublishedTask.scored`."""
    if not is_target:
        return text
    references = tuple(example["references"].decode().split(_SEPARATOR))
    value = references if scored in (MANY, GROUPED_MANY) else references[0]
    return {"group": example["group"].decode(), "value": value} if scored in (GROUPED, GROUPED_MANY) else value


def _as_text(value: Any, image: str | None = None) -> Any:
    """Converts bytes to str, and arrays to lists, except for the feature `image`."""
    if isinstance(value, dict):
        return {name: x if name == image else _as_text(x) for name, x in value.items()}
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray):
        return [_as_text(x) for x in value.tolist()]
    return value.item() if isinstance(value, np.generic) else value
