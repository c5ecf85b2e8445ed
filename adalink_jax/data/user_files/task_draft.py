"""Completes guessed settings with what the rows show, and writes the gin file of a task, for `adalink init`.

The file is a first draft that a person reads and corrects.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath

from adalink_jax.data.baselines import FEW_ANSWERS, as_numbers
from adalink_jax.data.label_sets import NO_LABEL
from adalink_jax.data.metrics.number_scores import as_number
from adalink_jax.data.user_files import row_checks
from adalink_jax.data.user_files.file_settings import ALTERNATIVES, LABELS, OF_CLASSES, OF_LABELS, OF_NUMBERS
from adalink_jax.data.user_files.file_task import FileTask, LoadedFileTask, sample
from adalink_jax.files.whole_file import write_text

MULTIPLES = {"inputs": 8, "targets": 4}  # TASK_FEATURE_LENGTHS are multiples of these
UNLIMITED = {"inputs": 2**30, "targets": 2**30}
LONG_TARGET = 5  # words
ANSWERS_READ = 1_000
MOST_ARE = 0.9
MOST_ROWS = 32  # of a batch
LISTS_REMARKS = {
    ALTERNATIVES: "any value of a list is a right answer",
    LABELS: f"all labels of a list apply: the target is them, sorted by name, with LABEL_SEPARATOR between; {NO_LABEL!r} without labels",
}


@dataclasses.dataclass(frozen=True)
class Draft:
    """A task with all its settings.

    Attributes:
      settings: settings of `file_task`, without those that keep their defaults.
      file_task: the task.
      loaded: the task, read with `lengths`.
      metric: the metric of validation.
      lengths: `{"inputs": L, "targets": T}`, in tokens.
      batch_size: rows of a batch.
    """

    settings: Mapping[str, Any]
    file_task: FileTask
    loaded: LoadedFileTask
    metric: str
    lengths: Mapping[str, int]
    batch_size: int

    def write(self, path: epath.Path, note: str) -> None:
        """Writes the gin file.

        Args:
          path: the file.
          note: its first line.
        """
        import jinja2

        order = [field.name for field in dataclasses.fields(FileTask)]
        macros = {
            "MIXTURE_OR_TASK_NAME": self.loaded.name,
            **{name.upper(): self.settings[name] for name in sorted(self.settings, key=order.index)},
            "METRIC": self.metric,
            "TASK_FEATURE_LENGTHS": self.lengths,
            "BATCH_SIZE": self.batch_size,
        }
        most = ", ".join(f"{side} {length}" for side, length in _most(self.loaded).items())
        remarks = {
            "LISTS": LISTS_REMARKS.get(self.settings.get("lists", "")),
            "DROP_SHARED": "rows that are in another split too are dropped from the one that is trained on",
            "TASK_FEATURE_LENGTHS": f"99 of 100 have at most: {most} tokens",
        }
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("adalink_jax", "assets"),
            undefined=jinja2.StrictUndefined,
            keep_trailing_newline=True,
        )
        lines = [(name, repr(value), remarks.get(name)) for name, value in macros.items()]
        write_text(path, environment.get_template("task.gin.jinja").render(note=_on_one_line(note), settings=lines))


def _on_one_line(text: str) -> str:
    """Text for a comment, with escapes for what could end its line."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


@dataclasses.dataclass(frozen=True)
class Choice:
    """What the rows of a task suggest.

    Attributes:
      settings: the settings of `FileTask` that were known, with `metrics` and `drop_shared`.
      metric: the metric of validation.
      most: `{"inputs": tokens, "targets": tokens}`, what 99 of 100 do not exceed.
    """

    settings: dict[str, Any]
    metric: str
    most: Mapping[str, int]

    @property
    def lengths(self) -> dict[str, int]:
        """`{"inputs": L, "targets": T}`: `most`, rounded up."""
        return {side: -(-length // MULTIPLES[side]) * MULTIPLES[side] for side, length in self.most.items()}


def choose(settings: Mapping[str, Any], name: str) -> Choice:
    """Reads the rows, and chooses metric and lengths by what they hold; the arguments are those of `complete`."""
    any_metric = OF_LABELS if settings.get("lists") == LABELS else ("exact_match",)
    first = LoadedFileTask(FileTask(**settings, metrics=any_metric), name, UNLIMITED)
    metrics, metric = _metrics(first)
    settings = {**settings, "metrics": metrics}
    if any(finding.kind == row_checks.SHARED and finding.count for finding in first.findings):
        settings["drop_shared"] = True
    return Choice(settings, metric, _most(first))


def complete(settings: Mapping[str, Any], name: str) -> Draft:
    """Chooses metric, lengths and batch size by what the rows hold.

    Args:
      settings: the settings known so far: at least `data`, `inputs`, `targets` and `vocabulary`.
      name: the name of the task.

    Raises:
      UserError: for what cannot be read.
    """
    choice = choose(settings, name)
    file_task = FileTask(**choice.settings)
    loaded = LoadedFileTask(file_task, name, choice.lengths)
    half = len(loaded.splits["train"]) // 2
    batch_size = min(MOST_ROWS, 1 << half.bit_length() - 1) if half else 1
    return Draft(choice.settings, file_task, loaded, choice.metric, choice.lengths, batch_size)


def _most(task: LoadedFileTask) -> dict[str, int]:
    """The length that 99 of 100 texts of each split do not exceed, for each side."""
    return {side: max(lengths[side].most for lengths in task.lengths.values()) for side in MULTIPLES}


def _metrics(task: LoadedFileTask) -> tuple[tuple[str, ...], str]:
    """The METRICS and the METRIC that fit the targets."""
    if task.labels is not None:
        return OF_LABELS, "micro_f1"
    rows = sample(task.splits["train"], ANSWERS_READ)
    words = sorted(len(row["references"][0].split()) for row in rows)
    if words[len(words) // 2] > LONG_TARGET:
        with_images = rows[0]["image_name"] is not None or rows[0]["image"] is not None
        return (("captions",), "cider") if with_images else (("rouge_l",), "rouge_l")
    if any(len(row["references"]) > 1 for row in rows):
        return ("exact_match",), "exact_match"
    answers = [row["references"][0] for row in rows]
    numbers = [answer for answer in answers if as_number(answer) is not None]
    if len(numbers) >= MOST_ARE * len(answers) and as_numbers(numbers) is not None:  # a run reports the others
        return OF_NUMBERS, OF_NUMBERS[0]
    are_classes = len(set(answers)) <= min(FEW_ANSWERS, len(answers) // 2)
    return ("accuracy", *(OF_CLASSES if are_classes else ())), "accuracy"
