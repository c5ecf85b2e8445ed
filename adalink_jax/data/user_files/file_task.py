"""A task over the user's own files: tables, or a folder of images. TensorFlow is not needed.

The order of an epoch is grain's shuffle by the epoch's seed, whatever the number of hosts. Examples are read by number, so
that a run resumes in the middle of an epoch without reading the examples before.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import gin
import numpy as np

from adalink_jax.data.images import decode_image, read_image
from adalink_jax.data.read_ahead import read_ahead
from adalink_jax.data.task_protocol import Example, Numbered
from adalink_jax.data.user_files import file_splits, row_checks
from adalink_jax.data.user_files.file_settings import METRICS, ONE_REFERENCE, FileSettings
from adalink_jax.data.user_files.file_splits import Split
from adalink_jax.data.user_files.row_checks import Lengths
from adalink_jax.data.user_files.row_store import StoredRow
from adalink_jax.data.vocabularies import Vocabulary, load_vocabulary
from adalink_jax.errors import UserError

if TYPE_CHECKING:
    import grain

SAMPLED = 5_000  # examples of a split whose tokens are counted
IMAGES_TRIED = 64  # images of a split that are decoded before a run starts


@gin.configurable
class FileTask(FileSettings):
    """A task over files, before they are read. The settings are those of `FileSettings`."""

    def load(
        self, name: str, lengths: Mapping[str, int], on_rows: Callable[[int], None] = lambda count: None
    ) -> "LoadedFileTask":
        """Reads and checks the files.

        Args:
          name: the name of the task.
          lengths: `{"inputs": L, "targets": T}`.
          on_rows: called now and then with the number of rows read since its last call.

        Raises:
          UserError: for what cannot be read, and if more is wrong than `limits` allow.
        """
        loaded = LoadedFileTask(self, name, lengths, on_rows)
        self.refuse(loaded)
        return loaded

    def refuse(self, loaded: "LoadedFileTask") -> None:
        """Raises:
        UserError: if more is wrong than `limits` allow, and for a metric of one reference if rows have several.
        """
        limits = row_checks.check_limits(self.limits)
        row_checks.refuse(loaded.findings, limits | ({row_checks.SHARED: 1.0} if self.drop_shared else {}), loaded.name)
        single = next((metric for metric in self.metrics if metric in ONE_REFERENCE), None)
        if loaded.several and single is not None:
            raise UserError(
                f"{loaded.name} has rows with several references, and METRICS {single!r}; use 'exact_match', or LISTS = 'labels' "
                "if all of them apply."
            )


class LoadedFileTask:
    """See `Task`. It can be sent to another process on the same machine.

    Attributes:
      splits: split -> its rows.
      findings: what is wrong with them.
      several: whether a row has several references.
      labels: how the targets write sets of labels; None if they are no such sets.
      remarks: what else the user should know of the data.
      lengths: split -> `{"inputs": Lengths, "targets": Lengths}`, of a sample.
      workers: see `FileSettings`.
    """

    digest = ""

    def __init__(
        self,
        settings: FileSettings,
        name: str,
        lengths: Mapping[str, int],
        on_rows: Callable[[int], None] = lambda count: None,
    ):
        """Reads all rows and counts the tokens of a sample; refuses nothing that it finds."""
        self.name, self.workers, self.labels = name, settings.workers, settings.labels
        self._settings, self._max = settings, dict(lengths)
        self._vocabulary: Vocabulary = load_vocabulary(settings.vocabulary)
        self.vocab_size, self.eos = self._vocabulary.vocab_size, self._vocabulary.eos
        self.has_images = settings.image is not None or settings.blank_image
        contents = file_splits.read(settings, on_rows)
        self.splits, self.findings, self.several = contents.splits, contents.findings, contents.several
        self._folders, self.remarks = contents.folders, contents.notes
        self.lengths: dict[str, dict[str, Lengths]] = {}
        for split, rows in self.splits.items():
            texts = [(row["inputs"], row["references"]) for row in sample(rows, SAMPLED)]
            self.lengths[split], findings = row_checks.check_tokens(split, texts, self._vocabulary, self._max)
            self.findings += findings
            for row in sample(rows, IMAGES_TRIED) if settings.image is not None else ():
                name_of_image = row["image_name"] or f"The picture in line {row['line']}"
                decode_image(self.encoded_image(row), (8, 8, 3), name_of_image)

    @property
    def notes(self) -> list[str]:
        """What a run reports about its data: sizes, lengths, and what is wrong."""
        sizes = []
        for split, rows in self.splits.items():
            sides = [
                f"{side} {lengths.smallest} to {lengths.largest} tokens, 99 of 100 up to {lengths.most}"
                for side, lengths in self.lengths[split].items()
            ]
            sizes.append(f"{split}: {len(rows):,} examples; {'; '.join(sides)}")
        return sizes + self.remarks + [str(finding) for finding in self.findings if finding.count]

    def rows(self, split: str, seed: int | None) -> "grain.MapDataset[StoredRow]":
        """The rows of a split at random access, shuffled by `seed`; None keeps the order."""
        import grain

        data = grain.MapDataset.source(cast(Sequence[StoredRow], self.splits[split]))  # needs only len and []
        return data if seed is None else data.shuffle(seed=seed)

    def dataset(self, split: str, seed: int | None) -> Numbered[Example]:
        """See `NumberedTask.dataset`: the examples of `rows`."""
        data = self.rows(split, seed).map(functools.partial(self.example, seed=seed))
        return cast(Numbered[Example], data)  # grain's type allows gaps; there are no gaps here

    def size(self, split: str, seed: int | None = None) -> int:
        """The number of examples of a split, whatever the seed."""
        return len(self.splits[split])

    def examples(self, split: str, seed: int | None = None, start: int = 0) -> Iterable[Example]:
        """See `Task.examples`."""
        return self.examples_at(split, seed, range(start, self.size(split)))

    def examples_at(self, split: str, seed: int | None, numbers: Sequence[int]) -> Iterable[Example]:
        """See `NumberedTask.examples_at`."""
        return read_ahead(self.dataset(split, seed), numbers)

    def example(self, row: StoredRow, seed: int | None = None) -> Example:
        """Tokenises a row; with a seed, draws one reference of several."""
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
        if side == "inputs":
            return np.array(self._vocabulary.input_ids(text, self._max[side]), np.int32)
        return np.array([*self._vocabulary.encode(text)[: self._max[side] - 1], self.eos], np.int32)

    def read(self, text: str, side: str) -> tuple[str, int]:
        """What the model reads of a text of `inputs` or `targets`; and the number of its tokens before it is cut."""
        ids = self._vocabulary.encode(text)
        frame = len(self._vocabulary.input_ids("")) if side == "inputs" else 1
        return self._vocabulary.decode(ids[: max(self._max[side] - frame, 0)]), len(ids) + frame

    def _image(self, row: StoredRow) -> dict[str, Any]:
        """`image` or `image_file` of a row; empty without images."""
        if self._settings.image is None:
            return {"image": b""} if self._settings.blank_image else {}
        if row["image"] is not None:
            return {"image": row["image"]}
        assert row["root"] is not None and row["image_name"] is not None  # every row without bytes names its image
        return self._folders[row["root"]].example(row["image_name"])

    def encoded_image(self, row: StoredRow) -> bytes:
        """The bytes of a row's image file."""
        image = self._image(row)
        return image["image"] if "image" in image else read_image(image["image_file"])

    def encode(self, text: str) -> list[int]:
        """See `Task.encode`."""
        return self._vocabulary.input_ids(text)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Task.decode`."""
        return self._vocabulary.decode(ids)

    def score(self, examples: Sequence[Example], predictions: Sequence[str]) -> dict[str, float]:
        """See `Task.score`."""
        values = {}
        references = [list(example["references"]) for example in examples]
        answers: Sequence[Any] = predictions
        if self.labels is not None:
            references = [self.labels.split(several[0]) for several in references]
            answers = [self.labels.split(text) for text in predictions]
        for name in self._settings.metrics:
            targets = [several[0] for several in references] if name in ONE_REFERENCE else references
            values.update({key: float(value) for key, value in METRICS[name](targets, answers).items()})
        return values


def sample(rows: Split, count: int) -> list[StoredRow]:
    """`count` evenly spaced rows; all if there are fewer."""
    numbers = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))
    return [rows[int(i)] for i in numbers]
