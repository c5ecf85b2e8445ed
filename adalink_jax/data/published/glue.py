"""GLUE (Wang et al., 2019) as text, in T5's form (Raffel et al., 2020, appendix D).

Tasks: `glue_cola`, `glue_sst2`, `glue_mrpc`, `glue_qqp`, `glue_stsb`, `glue_mnli_matched`, `glue_mnli_mismatched`,
`glue_qnli`, `glue_rte`, `glue_wnli`. `glue_mixture` is in proportion to their training examples, with T5's weights: none of
`glue_mnli_mismatched`, whose training examples are those of `glue_mnli_matched`, and without WNLI, which T5 left out.

The published test splits have no labels: `validation` is halved into `validation` and `test` by a digest of the text.
STS-B is trained on scores rounded to 0.2, as T5's, and scored against the published ones.

With `source` "tfds", `data_dir` holds `glue/cola/2.0.0` and so on. With "files" it holds the folders of the published
archives, CoLA SST-2 MRPC QQP STS-B MNLI QNLI RTE WNLI (or the names of the tasks, in small letters), each with `train.tsv` and
`dev.tsv` (MNLI: `dev_matched.tsv`, `dev_mismatched.tsv`). Where the original data set was published in another layout, that one
is read as well: CoLA 1.1 (`in_domain_train.tsv`, `in_domain_dev.tsv`, `out_of_domain_dev.tsv`), STS-B (`sts-train.csv`,
`sts-dev.csv`), RTE as `train.csv` and `dev.csv` (premise, hypothesis, label), and SST-2 in three labelled parts, of which
`train.tsv` and `dev.tsv` are GLUE's training examples and `test.tsv` its validation examples.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from adalink_jax.data.published import readers
from adalink_jax.data.published.registration import Example, PublishedTask, add_mixture, add_tasks, metric, tfds_rows
from adalink_jax.data.published.settings import TFDS, PublishedData
from adalink_jax.data.splits import halved
from adalink_jax.errors import UserError

LIMIT = 2**19  # T5's limit on the examples that count in a proportional mixture


@dataclasses.dataclass(frozen=True)
class Layout:
    """Files of one form.

    Attributes:
      files: published split -> names of files.
      columns: our name -> column; without a header the columns in order, of which "" are left out.
      header: whether the first line names the columns.
      delimiter, quoted: see `readers.table`.
      leave_out_short: whether rows without all columns are left out (the published QQP has some; TFDS leaves them out).
      labels: label in the file -> class; None for a number as it is.
    """

    files: Mapping[str, Sequence[str]]
    columns: Mapping[str, str] | Sequence[str]
    header: bool = True
    delimiter: str = "\t"
    quoted: bool = False
    leave_out_short: bool = False
    labels: Mapping[str, int] | None = None

    def there(self, folder) -> bool:
        """Whether the files are there, and their headers are these."""
        files = [folder / name for names in self.files.values() for name in names]
        if not self.header:
            return all(file.exists() for file in files)
        return all(readers.has_header(file, list(self.columns.values()), self.delimiter) for file in files)

    def rows(self, folder, split: str) -> Iterator[dict]:
        """The rows of a published split, with TFDS's names and classes.

        Raises:
          UserError: for what is missing or of another form.
        """
        columns = (
            self.columns.values() if self.header else [name or f"column {i}" for i, name in enumerate(self.columns)]
        )
        names = self.columns if self.header else {name: name for name in self.columns if name}
        for name in self.files[split]:
            table = readers.table(
                folder / name, list(columns), self.header, self.delimiter, self.quoted, self.leave_out_short
            )
            for number, row in enumerate(table, 1):
                found = {ours: row[column] for ours, column in names.items()}
                yield found | {"label": self._label(found["label"], f"Example {number} of {folder / name}")}

    def _label(self, text: str, where: str) -> float:
        try:
            return float(text) if self.labels is None else self.labels[text]
        except (ValueError, KeyError) as e:
            known = "a number" if self.labels is None else " or ".join(self.labels)
            raise UserError(f"{where} has the label {text!r}, which must be {known}; copy the file again.") from e


def _usual(columns: Sequence[str], label: str = "label", classes: Sequence[str] = ("0", "1"), **renamed) -> Layout:
    """The layout of GLUE's archives: train.tsv and dev.tsv."""
    names = {name: renamed.get(name, name) for name in columns}
    return Layout(
        {"train": ["train.tsv"], "validation": ["dev.tsv"]},
        names | {"label": label},
        labels={name: i for i, name in enumerate(classes)},
    )


@dataclasses.dataclass(frozen=True)
class Glue:
    """A task.

    Attributes:
      folder: of its files.
      columns: of the text, in the order in which they are written.
      classes: words of the classes; None for a score.
      metrics: of the task.
      layouts: of its files; the first that is there, and the last is the one that is asked for.
      prefix: what stands before the text; the task's own name by default.
      tfds: configuration and validation split in TFDS, where they are not the task's name and "validation".
    """

    folder: str
    columns: Sequence[str]
    classes: Sequence[str] | None
    metrics: Sequence[Callable]
    layouts: Sequence[Layout]
    prefix: str | None = None
    tfds: str | None = None
    validation: str = "validation"


PAIR = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")
MNLI = ("entailment", "neutral", "contradiction")
ACCURACY = metric("accuracy")
_NUMBERED = {"0": 0, "1": 1}
_SCORE = dataclasses.replace(_usual(PAIR, "score"), labels=None)


def _mnli(kind: str) -> Glue:
    columns = {"hypothesis": "sentence2", "premise": "sentence1", "label": "gold_label"}
    split = f"validation_{kind}"
    layout = Layout(
        {"train": ["train.tsv"], split: [f"dev_{kind}.tsv"]}, columns, labels={name: i for i, name in enumerate(MNLI)}
    )
    return Glue("MNLI", ("hypothesis", "premise"), MNLI, [ACCURACY], [layout], "mnli", "mnli", split)


GLUE = {
    "cola": Glue(
        "CoLA", ("sentence",), ("unacceptable", "acceptable"), [metric("glue.matthews", label_words=("unacceptable", "acceptable")), ACCURACY],
        [
            Layout(
                {"train": ["in_domain_train.tsv"], "validation": ["in_domain_dev.tsv", "out_of_domain_dev.tsv"]},
                ("", "label", "", "sentence"), header=False, labels=_NUMBERED,
            ),
            Layout(
                {"train": ["train.tsv"], "validation": ["dev.tsv"]},
                ("", "label", "", "sentence"), header=False, labels=_NUMBERED,
            ),
        ],
    ),
    "sst2": Glue(
        "SST-2", ("sentence",), ("negative", "positive"), [ACCURACY],
        [
            dataclasses.replace(
                _usual(("sentence",)), files={"train": ["train.tsv", "dev.tsv"], "validation": ["test.tsv"]}
            ),
            _usual(("sentence",)),
        ],
    ),
    "mrpc": Glue(
        "MRPC", PAIR, ("not_equivalent", "equivalent"), [metric("glue.f1", label_words=("not_equivalent", "equivalent")), ACCURACY],
        [_usual(PAIR, "Quality", sentence1="#1 String", sentence2="#2 String")],
    ),
    "qqp": Glue(
        "QQP", ("question1", "question2"), ("not_duplicate", "duplicate"),
        [metric("glue.f1", label_words=("not_duplicate", "duplicate")), ACCURACY],
        [dataclasses.replace(_usual(("question1", "question2"), "is_duplicate"), leave_out_short=True)],
    ),
    "stsb": Glue(
        "STS-B", PAIR, None, [metric("glue.correlations")],
        [
            Layout(
                {"train": ["sts-train.csv"], "validation": ["sts-dev.csv"]},
                ("", "", "", "", "label", "sentence1", "sentence2"), header=False,
            ),
            _SCORE,
        ],
    ),
    "mnli_matched": _mnli("matched"),
    "mnli_mismatched": _mnli("mismatched"),
    "qnli": Glue(
        "QNLI", ("question", "sentence"), ENTAILMENT, [ACCURACY], [_usual(("question", "sentence"), classes=ENTAILMENT)]
    ),
    "rte": Glue(
        "RTE", PAIR, ENTAILMENT, [ACCURACY],
        [
            Layout(
                {"train": ["train.csv"], "validation": ["dev.csv"]},
                {"sentence1": "premise", "sentence2": "hypothesis", "label": "label"},
                delimiter=",", quoted=True, labels={name: i for i, name in enumerate(ENTAILMENT)},
            ),
            _usual(PAIR, classes=ENTAILMENT),
        ],
    ),
    "wnli": Glue("WNLI", PAIR, ("not_entailment", "entailment"), [ACCURACY], [_usual(PAIR)]),
}  # fmt: skip

# Training examples: T5's weights (glue_v002_proportional).
RATES = {
    "cola": 8_551, "sst2": 67_349, "mrpc": 3_668, "qqp": 363_849, "stsb": 5_749, "mnli_matched": 392_702,
    "mnli_mismatched": 0, "qnli": 104_743, "rte": 2_490,
}  # fmt: skip


def written(prefix: str, columns: Sequence[str], row: Mapping) -> str:
    """`PREFIX column: text column: text`."""
    return " ".join([prefix, *(part for name in columns for part in (f"{name}:", row[name]))])


def glue_form(name: str, row: Mapping) -> Example:
    """A row of a task, as T5 writes it; -0.0 and halves round as NumPy's, to even."""
    task = GLUE[name]
    inputs = written(task.prefix or name, task.columns, row)
    if task.classes is not None:
        return Example(inputs, task.classes[row["label"]])
    return Example(inputs, f"{round(row['label'] * 5) / 5:.1f}", (repr(row["label"]),))


def register() -> None:
    """Declares the tasks, with the settings of `PublishedData`."""
    data = PublishedData()
    add_tasks(glue_tasks(GLUE, data), data.vocabulary)
    add_mixture("glue_mixture", {f"glue_{name}": min(rate, LIMIT) for name, rate in RATES.items()})


def glue_tasks(names: Iterable[str], data: PublishedData) -> list[PublishedTask]:
    """Tasks of GLUE, by their names there."""
    return [_task(name, GLUE[name], data) for name in names]


def _task(name: str, task: Glue, data: PublishedData) -> PublishedTask:
    def rows(split: str, seed: int | None) -> Iterator[dict]:
        del seed
        folder = data.folder(task.folder, name.split("_")[0])
        layout = next((layout for layout in task.layouts if layout.there(folder)), task.layouts[-1])
        return layout.rows(folder, split)

    return PublishedTask(
        f"glue_{name}",
        tfds_rows(data, f"glue/{task.tfds or name}") if data.source == TFDS else rows,
        lambda row, train: [glue_form(name, row)],
        lambda row: "\t".join(row[column] for column in task.columns),
        halved(validation=task.validation),
        task.metrics,
        keep=data.source != TFDS,
    )
