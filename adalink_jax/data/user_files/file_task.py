"""A task over one's own files: a CSV, TSV, JSONL or Parquet, or a folder of images. TensorFlow is not needed.

The order of an epoch is grain's shuffle by the epoch's seed, whatever the number of hosts; example `i` of it is read when it is asked
for, so that a run goes on in the middle of an epoch without reading what was before.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import gin
import numpy as np

from adalink_jax.data import metrics as scores
from adalink_jax.data.images import decode_image, read_image
from adalink_jax.data.user_files import file_splits, row_checks
from adalink_jax.data.user_files.row_checks import Lengths
from adalink_jax.data.vocabularies import EOS, Vocabulary, load_vocabulary
from adalink_jax.errors import UserError

SAMPLED = 5_000  # examples of a split whose tokens are counted
PICTURES_TRIED = 64  # of a split, before a run starts
METRICS = {
    "accuracy": scores.accuracy,
    "exact_match": scores.exact_match,
    "squad": scores.squad,
    "anls": scores.anls,
    "vqa_accuracy": scores.vqa_accuracy,
    "captions": scores.captions,
    "rouge_l": scores.rouge_l,
}
ONE_REFERENCE = ("accuracy",)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class FileTask:
    """Which files, and what is made of their rows (`gin/tasks/files.gin`; `adalink init` writes such settings).

    Attributes:
      data: a file, or several; or files by split (`train`, and `validation`, `test`, or neither); or a folder of images with a subfolder for each
        class, or for each split and in it for each class (its columns are `image`, `label`, `split`).
      inputs, targets: templates, `question: {question}`, with names of columns. `targets` of one column that holds lists has
        several references: of them one is drawn for each epoch, and all are scored against.
      vocabulary: the model's, as for `load_vocabulary`.
      image: a template for the name of each row's picture, or a column that holds pictures' bytes; None where there are none.
      images: the folder or archive (.zip, .tar) of the pictures; None for the folder of the table.
      columns: names of the columns of a CSV or TSV that has no header.
      delimiter: of a CSV or TSV; None for a comma (CSV) and a tab (TSV).
      split: the column that says which split a row is in.
      group: a template; rows of which it says the same are in the same split. None: the picture, or else the input.
      validation_share, test_share: of the training rows, by a hash, where there are no files or rows for these splits.
      metrics: names of `METRICS`.
      blank_image: give each example an empty picture, for text on a model that takes pictures.
      drop_shared: leave out of `train` what is in another split too, and of `validation` what is in `test`.
      limits: shares of rows that may be wrong, see `checks.LIMITS`.
      workers: processes that read, tokenise and decode pictures; 0 does so in threads of this one.

    Raises:
      UserError: for a metric that is none, and settings that contradict each other.
    """

    data: str | Sequence[str] | Mapping[str, str | Sequence[str]]
    inputs: str
    targets: str
    vocabulary: str
    image: str | None = None
    images: str | None = None
    columns: Sequence[str] | None = None
    delimiter: str | None = None
    split: str | None = None
    group: str | None = None
    validation_share: float = 0.1
    test_share: float = 0.1
    metrics: Sequence[str] = ("accuracy",)
    blank_image: bool = False
    drop_shared: bool = False
    limits: Mapping[str, float] = dataclasses.field(default_factory=dict)
    workers: int = 0

    def __post_init__(self):
        unknown = next((name for name in self.metrics if name not in METRICS), None)
        if unknown is not None or not self.metrics:
            raise UserError(f"METRICS has {unknown!r}; it takes some of {', '.join(METRICS)}.")
        if not (0 < self.validation_share and 0 < self.test_share and self.validation_share + self.test_share < 1):
            raise UserError("VALIDATION_SHARE and TEST_SHARE must be above 0, and below 1 together.")
        if self.images is not None and self.image is None:
            raise UserError("IMAGES is set, and IMAGE, which names each row's picture, is not.")
        if self.blank_image and self.image is not None:
            raise UserError("BLANK_IMAGE is for rows without pictures, and IMAGE is set; leave one out.")
        row_checks.check_limits(self.limits)

    def load(self, name: str, lengths: Mapping[str, int], on_rows=lambda count: None) -> "LoadedFileTask":
        """Reads and checks the files.

        Args:
          name: the task's.
          lengths: `{"inputs": L, "targets": T}`.
          on_rows: told how many more rows were read, now and then.

        Raises:
          UserError: for what cannot be read, and where more is wrong than `limits` allow.
        """
        loaded = LoadedFileTask(self, name, lengths, on_rows)
        self.refuse(loaded)
        return loaded

    def refuse(self, loaded: "LoadedFileTask") -> None:
        """Raises:
        UserError: where more is wrong than `limits` allow, and for a metric of one reference where rows have several.
        """
        limits = row_checks.check_limits(self.limits)
        row_checks.refuse(loaded.findings, limits | ({row_checks.SHARED: 1.0} if self.drop_shared else {}), loaded.name)
        single = next((metric for metric in self.metrics if metric in ONE_REFERENCE), None)
        if loaded.several and single is not None:
            raise UserError(
                f"{loaded.name} has rows with several references, and METRICS {single!r}; use 'exact_match'."
            )


class LoadedFileTask:
    """See `Task`. It can be sent to another process on the same machine.

    Attributes:
      splits: name -> its examples.
      findings: what is wrong with them.
      several: whether a row has several references.
      lengths: split -> `{"inputs": Lengths, "targets": Lengths}`, of a sample.
      workers: see `FileTask`.
    """

    def __init__(self, settings: FileTask, name: str, lengths: Mapping[str, int], on_rows=lambda count: None):
        """Reads all rows, and counts the tokens of a sample; refuses nothing of what it finds."""
        self.name, self.workers = name, settings.workers
        self._settings, self._max = settings, dict(lengths)
        self._vocabulary: Vocabulary = load_vocabulary(settings.vocabulary)
        self.vocab_size = self._vocabulary.vocab_size
        self.has_images = settings.image is not None or settings.blank_image
        found = file_splits.read(settings, on_rows)
        self.splits, self.findings, self.several = found.splits, found.findings, found.several
        self._pictures, self._told = found.pictures, found.notes
        self.lengths: dict[str, dict[str, Lengths]] = {}
        for split, examples in self.splits.items():
            texts = [(row["inputs"], row["references"]) for row in sample(examples, SAMPLED)]
            self.lengths[split], found = row_checks.of_tokens(split, texts, self._vocabulary, self._max)
            self.findings += found
            self._try_pictures(examples)

    def _try_pictures(self, examples: file_splits.Split) -> None:
        if self._settings.image is None:
            return
        for row in sample(examples, PICTURES_TRIED):
            image = self._image(row)
            encoded = image["image"] if "image" in image else read_image(image["image_file"])
            decode_image(encoded, (8, 8, 3), row["image_name"] or f"The picture in line {row['line']}")

    @property
    def notes(self) -> list[str]:
        """What a run tells of its data: sizes, lengths, and what is wrong."""
        told = []
        for split, examples in self.splits.items():
            sides = [
                f"{side} {each.smallest} to {each.largest} tokens, 99 of 100 up to {each.most}"
                for side, each in self.lengths[split].items()
            ]
            told.append(f"{split}: {len(examples):,} examples; {'; '.join(sides)}")
        return told + self._told + [str(finding) for finding in self.findings if finding.count]

    def dataset(self, split: str, seed: int | None):
        """The examples of a split, at random access: a `grain.MapDataset`, shuffled by `seed`; None keeps the order."""
        import grain

        data = grain.MapDataset.source(self.splits[split])
        if seed is not None:
            data = data.shuffle(seed=seed)
        return data.map(functools.partial(self.example, seed=seed))

    def examples(self, split: str, seed: int | None = None, start: int = 0) -> Iterable[dict]:
        """See `Task.examples`."""
        import grain

        data = self.dataset(split, seed)
        if start >= len(data):
            return iter(())
        return iter(data[start:].to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=64)))

    def example(self, row: dict, seed: int | None = None) -> dict:
        """A row as the model gets it; with a seed, one reference of several is drawn."""
        references = row["references"]
        drawn = 0
        if seed is not None and len(references) > 1:
            drawn = int(np.random.default_rng([seed, row["line"]]).integers(len(references)))
        return {
            "inputs": self._ids(row["inputs"], "inputs"),
            "targets": self._ids(references[drawn], "targets"),
            "inputs_pretokenized": row["inputs"],
            "targets_pretokenized": references[drawn],
            "references": references,
            **self._image(row),
        }

    def _ids(self, text: str, side: str) -> np.ndarray:
        return np.array([*self._vocabulary.encode(text)[: self._max[side] - 1], EOS], np.int32)

    def _image(self, row: dict) -> dict:
        if self._settings.image is None:
            return {"image": b""} if self._settings.blank_image else {}
        return {"image": row["image"]} if row["image"] is not None else self.picture(row)

    def picture(self, row: dict) -> dict:
        """`image_file` or `image` of a row whose picture lies in a folder or an archive."""
        return self._pictures[row["root"]].example(row["image_name"])

    def encode(self, text: str) -> list[int]:
        """See `Task.encode`."""
        return self._vocabulary.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Task.decode`."""
        return self._vocabulary.decode(ids)

    def score(self, examples: Sequence[dict], predictions: Sequence[str]) -> dict[str, float]:
        """See `Task.score`."""
        found = {}
        for name in self._settings.metrics:
            several = [list(example["references"]) for example in examples]
            targets = [each[0] for each in several] if name in ONE_REFERENCE else several
            found.update({key: float(value) for key, value in METRICS[name](targets, predictions).items()})
        return found


def sample(examples: Sequence, count: int) -> list[dict]:
    """`count` of them, evenly spaced; all if they are fewer."""
    numbers = np.unique(np.linspace(0, len(examples) - 1, min(count, len(examples))).round().astype(int))
    return [examples[int(i)] for i in numbers]
