"""GLUE (Wang et al., 2019) as text, in T5's form (Raffel et al., 2020, appendix D).

Tasks: `glue_cola`, `glue_sst2`, `glue_mrpc`, `glue_qqp`, `glue_stsb`, `glue_mnli_matched`, `glue_mnli_mismatched`,
`glue_qnli`, `glue_rte`, `glue_wnli`. `glue_mixture` is in proportion to their training examples, with T5's weights: it has none of
`glue_mnli_mismatched`, whose training examples are those of `glue_mnli_matched`, and excludes WNLI, as T5 did.

The published test splits have no labels, so `validation` is halved into `validation` and `test` by a digest of the text.
STS-B is trained on scores rounded to 0.2, as T5 was, and scored against the published ones.

With `source` "tfds", `data_dir` holds `glue/cola/2.0.0` and so on. With "files" it holds the folders of the published
archives, CoLA SST-2 MRPC QQP STS-B MNLI QNLI RTE WNLI (or the names of the tasks, in lower case), each with `train.tsv` and
`dev.tsv` (MNLI: `dev_matched.tsv`, `dev_mismatched.tsv`). Other layouts of the original data sets are read as well: CoLA 1.1
(`in_domain_train.tsv`, `in_domain_dev.tsv`, `out_of_domain_dev.tsv`), STS-B (`sts-train.csv`, `sts-dev.csv`), RTE as
`train.csv` and `dev.csv` (premise, hypothesis, label), and SST-2 in three labelled parts, of which `train.tsv` and `dev.tsv` are
GLUE's training examples and `test.tsv` its validation examples.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from adalink_jax.data.metrics import labels
from adalink_jax.data.published import readers
from adalink_jax.data.published.registration import (
    Metric,
    PublishedTask,
    Row,
    TextExample,
    add_mixture,
    add_tasks,
    metric,
    tfds_rows,
)
from adalink_jax.data.published.settings import TFDS, PublishedData
from adalink_jax.data.splits import halved
from adalink_jax.errors import UserError

LIMIT = 2**19  # T5's limit on the examples that count in a proportional mixture


@dataclasses.dataclass(frozen=True)
class Layout:
    """A layout of a task's files.

    Attributes:
      files: published split -> names of files.
      columns: field of a row -> column of the file.
      names: without a header, the names of the columns in order; "" for those that are skipped.
      delimiter, quoted: see `readers.table`.
      leave_out_short: whether rows without all columns are skipped (the published QQP has some; TFDS skips them too).
      labels: the labels in the file, in the order of the classes; None for a number, which is kept.
    """

    files: Mapping[str, Sequence[str]]
    columns: Mapping[str, str]
    names: Sequence[str] | None = None
    delimiter: str = "\t"
    quoted: bool = False
    leave_out_short: bool = False
    labels: Sequence[str] | None = None

    def exists(self, folder: epath.Path) -> bool:
        """Whether all files exist and have these headers."""
        files = [folder / name for names in self.files.values() for name in names]
        if self.names is not None:
            return all(file.exists() for file in files)
        return all(readers.has_header(file, list(self.columns.values()), self.delimiter) for file in files)

    def rows(self, folder: epath.Path, split: str) -> Iterator[Row]:
        """The rows of a published split, with TFDS's names and classes.

        Raises:
          UserError: for what is missing or of another form.
        """
        columns = list(self.columns.values())
        if self.names is not None:
            columns = [name or f"column {i}" for i, name in enumerate(self.names)]
        for name in self.files[split]:
            path = folder / name
            table = readers.table(path, columns, self.names is None, self.delimiter, self.quoted, self.leave_out_short)
            for number, cells in enumerate(table, 1):
                row: Row = {field: cells[column] for field, column in self.columns.items()}
                yield row | {"label": self._label(row["label"], f"Example {number} of {path}")}

    def _label(self, text: str, where: str) -> float:
        try:
            return float(text) if self.labels is None else self.labels.index(text)
        except ValueError as e:
            known = "a number" if self.labels is None else " or ".join(self.labels)
            raise UserError(f"{where} has the label {text!r}, which must be {known}; copy the file again.") from e


ARCHIVE = {"train": ["train.tsv"], "validation": ["dev.tsv"]}  # files of GLUE's archives


def _usual(
    columns: Sequence[str], label: str = "label", classes: Sequence[str] | None = ("0", "1"), **renamed: str
) -> Layout:
    """The layout of GLUE's archives."""
    names = {name: renamed.get(name, name) for name in columns}
    return Layout(ARCHIVE, names | {"label": label}, labels=classes)


def _without_header(files: Mapping[str, Sequence[str]], *names: str, classes: Sequence[str] | None = None) -> Layout:
    return Layout(files, {name: name for name in names if name}, names, labels=classes)


@dataclasses.dataclass(frozen=True)
class Glue:
    """A task.

    Attributes:
      folder: folder of its files.
      columns: columns of the text, in the order in which they are written.
      classes: words of the classes; None for a score.
      metrics: metrics of the task.
      layouts: layouts of its files, of which the first that exists is read; the last is named if none does.
      prefix: what precedes the text; None for the task's name.
      tfds, validation: configuration and validation split in TFDS; None for the task's name.
    """

    folder: str
    columns: Sequence[str]
    classes: Sequence[str] | None
    metrics: Sequence[Metric]
    layouts: Sequence[Layout]
    prefix: str | None = None
    tfds: str | None = None
    validation: str = "validation"


PAIR = ("sentence1", "sentence2")
ENTAILMENT = labels.GLUE["rte"]
ACCURACY = metric("accuracy")


def _mnli(kind: str) -> Glue:
    classes, split = labels.GLUE["mnli"], f"validation_{kind}"
    columns = {"hypothesis": "sentence2", "premise": "sentence1", "label": "gold_label"}
    layout = Layout({"train": ["train.tsv"], split: [f"dev_{kind}.tsv"]}, columns, labels=classes)
    return Glue("MNLI", ("hypothesis", "premise"), classes, [ACCURACY], [layout], "mnli", "mnli", split)


def _scored(task: str, name: str) -> list[Metric]:
    return [metric(f"glue_scores.{name}", label_words=labels.GLUE[task]), ACCURACY]


COLA_FILES = {"train": ["in_domain_train.tsv"], "validation": ["in_domain_dev.tsv", "out_of_domain_dev.tsv"]}
COLA_COLUMNS = ("", "label", "", "sentence")
SST2 = _usual(("sentence",))
QUESTIONS = ("question1", "question2")
QNLI = ("question", "sentence")
GLUE = {
    "cola": Glue(
        "CoLA", ("sentence",), labels.GLUE["cola"], _scored("cola", "matthews"),
        [_without_header(files, *COLA_COLUMNS, classes=("0", "1")) for files in (COLA_FILES, ARCHIVE)],
    ),
    "sst2": Glue(
        "SST-2", ("sentence",), labels.GLUE["sst2"], [ACCURACY],
        [dataclasses.replace(SST2, files={"train": ["train.tsv", "dev.tsv"], "validation": ["test.tsv"]}), SST2],
    ),
    "mrpc": Glue(
        "MRPC", PAIR, labels.GLUE["mrpc"], _scored("mrpc", "f1"),
        [_usual(PAIR, "Quality", sentence1="#1 String", sentence2="#2 String")],
    ),
    "qqp": Glue(
        "QQP", QUESTIONS, labels.GLUE["qqp"], _scored("qqp", "f1"),
        [dataclasses.replace(_usual(QUESTIONS, "is_duplicate"), leave_out_short=True)],
    ),
    "stsb": Glue(
        "STS-B", PAIR, None, [metric("glue_scores.correlations")],
        [
            _without_header(
                {"train": ["sts-train.csv"], "validation": ["sts-dev.csv"]}, "", "", "", "", "label", "sentence1", "sentence2"
            ),
            _usual(PAIR, "score", None),
        ],
    ),
    "mnli_matched": _mnli("matched"),
    "mnli_mismatched": _mnli("mismatched"),
    "qnli": Glue("QNLI", QNLI, labels.GLUE["qnli"], [ACCURACY], [_usual(QNLI, classes=labels.GLUE["qnli"])]),
    "rte": Glue(
        "RTE", PAIR, ENTAILMENT, [ACCURACY],
        [
            Layout(
                {"train": ["train.csv"], "validation": ["dev.csv"]},
                {"sentence1": "premise", "sentence2": "hypothesis", "label": "label"},
                delimiter=",", quoted=True, labels=ENTAILMENT,
            ),
            _usual(PAIR, classes=ENTAILMENT),
        ],
    ),
    "wnli": Glue("WNLI", PAIR, labels.GLUE["wnli"], [ACCURACY], [_usual(PAIR)]),
}  # fmt: skip

# Training examples: T5's weights (glue_v002_proportional).
RATES = {
    "cola": 8_551, "sst2": 67_349, "mrpc": 3_668, "qqp": 363_849, "stsb": 5_749, "mnli_matched": 392_702,
    "mnli_mismatched": 0, "qnli": 104_743, "rte": 2_490,
}  # fmt: skip


def written(prefix: str, columns: Sequence[str], row: Mapping[str, Any]) -> str:
    """Returns `PREFIX column: text column: text`."""
    return " ".join([prefix, *(part for name in columns for part in (f"{name}:", row[name]))])


def glue_form(name: str, row: Row) -> TextExample:
    """Writes a row of a task as T5 does; scores are rounded to a fifth, halves to even."""
    task = GLUE[name]
    inputs = written(task.prefix or name, task.columns, row)
    if task.classes is not None:
        return TextExample(inputs, task.classes[int(row["label"])])
    return TextExample(inputs, f"{round(row['label'] * 5) / 5:.1f}", (repr(row["label"]),))


def register() -> None:
    """Declares the tasks, with the settings of `PublishedData`."""
    data = PublishedData()
    add_tasks([glue_task(name, data) for name in GLUE], data)
    add_mixture("glue_mixture", {f"glue_{name}": min(rate, LIMIT) for name, rate in RATES.items()})


def _rows(name: str, data: PublishedData, split: str, seed: int | None) -> Iterator[Row]:
    task = GLUE[name]
    folder = data.folder(task.folder, name.split("_")[0])
    layout = next((layout for layout in task.layouts if layout.exists(folder)), task.layouts[-1])
    return layout.rows(folder, split)


def glue_task(name: str, data: PublishedData) -> PublishedTask:
    """Returns a task by its name in GLUE."""
    task = GLUE[name]
    return PublishedTask(
        f"glue_{name}",
        tfds_rows(data, f"glue/{task.tfds or name}") if data.source == TFDS else functools.partial(_rows, name, data),
        lambda row, train: [glue_form(name, row)],
        lambda row: "\t".join(row[column] for column in task.columns),
        halved(validation=task.validation),
        task.metrics,
        keep=data.source != TFDS,
    )
