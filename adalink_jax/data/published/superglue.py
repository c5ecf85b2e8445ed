"""SuperGLUE (Wang et al., 2019) as text, in T5's form (Raffel et al., 2020, appendix D).

Tasks: `superglue_boolq`, `superglue_cb`, `superglue_copa`, `superglue_multirc`, `superglue_record`, `superglue_rte`,
`superglue_wic`, `superglue_wsc`. `superglue_mixture` is in proportion to their training examples, with T5's weights.

The published test splits have no labels, so `validation` is halved by a digest of the text; or, if several questions share a
passage (BoolQ, MultiRC, ReCoRD), of the passage, so that a passage is in one half only.

MultiRC is scored by question, ReCoRD against all answers; in training ReCoRD has one example per answer. WSC asks for the noun
that the marked pronoun refers to: it is trained on the examples whose noun is right, and scored by T5's comparison of words.
(T5 also trained it on DPR, which is not read here.)

With `source` "tfds", `data_dir` holds `super_glue/boolq/1.0.2` and so on. With "files" it holds the folders of the published
archives, BoolQ CB COPA MultiRC ReCoRD RTE WiC WSC, each with `train.jsonl` and `val.jsonl`.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from adalink_jax.data.metrics import labels
from adalink_jax.data.published import readers
from adalink_jax.data.published.glue import LIMIT, written
from adalink_jax.data.published.registration import (
    GROUPED,
    GROUPED_MANY,
    ONE,
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

BOOLEAN = labels.SUPERGLUE["boolq"]
ACCURACY = metric("accuracy")
Form = Callable[[Row, bool], Iterable[TextExample]]


def _classified(name: str, columns: Sequence[str]) -> Form:
    return lambda row, train: [TextExample(written(name, columns, row), labels.SUPERGLUE[name][row["label"]])]


def multirc_form(row: Row, train: bool) -> list[TextExample]:
    """Writes a candidate answer, without markup; the group is its question."""
    text = written("multirc", ("question", "answer", "paragraph"), row)
    text = re.sub("</?b>", "", text.replace("<br>", " "))
    group = f"{row['idx']['paragraph']}-{row['idx']['question']}"
    return [TextExample(text, BOOLEAN[row["label"]], group=group)]


def record_form(row: Row, train: bool) -> Iterator[TextExample]:
    """Writes a query; in training once for each answer."""
    passage = re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", row["passage"]).replace("\n@highlight\n", ". ")
    text = f"record query: {row['query']} entities: {', '.join(row['entities'])} passage: {passage}"
    answers = list(dict.fromkeys(row["answers"]))
    for answer in answers if train else answers[:1]:
        yield TextExample(text, answer, tuple(answers), f"{row['idx']['passage']}-{row['idx']['query']}")


def wsc_form(row: Row, train: bool) -> Iterator[TextExample]:
    """Writes the text with the pronoun between asterisks; the target is the noun in question, in training the right one.

    The pronoun is word number `span2_index`, which is off by a word or two in some published rows: the nearest word that is
    the pronoun is marked, without adjacent punctuation.
    """
    if train and not row["label"]:
        return
    words, pronoun, index = row["text"].split(" "), row["span2_text"], row["span2_index"]
    bare = lambda word: word.strip(".,;:!?\"'()")
    places = [i for i, word in enumerate(words) if bare(word) == bare(pronoun)]
    if not places:
        raise UserError(f"An example of WSC has no word {pronoun!r} in {row['text']!r}; copy the data set again.")
    nearest = min(places, key=lambda i: abs(i - index))
    words[nearest] = words[nearest].replace(bare(pronoun), f"*{bare(pronoun)}*", 1)
    yield TextExample(f"wsc: {' '.join(words)}", row["span1_text"], (BOOLEAN[row["label"]],), group=row["span1_text"])


_DETERMINERS = frozenset(
    "a an few her his each every many much my our some that the their these this those which whose your".split()
)


def wsc_label(prediction: str, noun: str) -> str:
    """T5's comparison: "True" if a prediction names `noun`.

    The words of one must be among the other's, ignoring case and determiners, and both or neither must have an apostrophe.
    """
    clean = lambda text: " ".join(word for word in text.strip().lower().split(" ") if word not in _DETERMINERS)
    predicted, right = clean(prediction), clean(noun)
    if not predicted or ("'" in predicted) != ("'" in right):
        return BOOLEAN[0]
    predicted_words, right_words = set(predicted.split(" ")), set(right.split(" "))
    return BOOLEAN[predicted_words <= right_words or right_words <= predicted_words]


def _compared_nouns(text: str, example: Row, is_target: bool) -> str:
    return example["references"].decode() if is_target else wsc_label(text, example["group"].decode())


@dataclasses.dataclass(frozen=True)
class SuperGlue:
    """A task.

    Attributes:
      folder: folder of its files.
      form: writes a row as examples.
      identity: columns that decide the half.
      metrics: metrics of the task.
      rate: training examples, T5's weight.
      entry: maps an entry of a file to rows with TFDS's names.
      scored: see `PublishedTask`.
      tfds: its configuration in TFDS; None for the task's name.
    """

    folder: str
    form: Form
    identity: Sequence[str]
    metrics: Sequence[Metric]
    rate: int
    entry: Callable[[Row], Iterable[Row]]
    scored: str | Callable[..., Any] = ONE
    tfds: str | None = None


def _flat(columns: Sequence[str], classes: Sequence[str] | None = None) -> Callable[[Row], Iterable[Row]]:
    """Reads entries with the columns of TFDS; `classes` are the labels in the file."""
    number = int if classes is None else classes.index
    return lambda entry: [{name: entry[name] for name in columns} | {"label": number(entry["label"])}]


def _multirc_entry(entry: Row) -> Iterable[Row]:
    passage = entry["passage"]
    for question in passage["questions"]:
        for answer in question["answers"]:
            yield {
                "paragraph": passage["text"], "question": question["question"], "answer": answer["text"],
                "label": int(answer["label"]), "idx": {"paragraph": entry["idx"], "question": question["idx"]},
            }  # fmt: skip


def _record_entry(entry: Row) -> Iterable[Row]:  # sorted, as in TFDS
    text = entry["passage"]["text"]
    entities = {text[span["start"] : span["end"] + 1] for span in entry["passage"]["entities"]}
    for query in entry["qas"]:
        answers = {answer["text"] for answer in query["answers"]}
        yield {"passage": text, "query": query["query"], "entities": sorted(entities), "answers": sorted(answers),
               "idx": {"passage": entry["idx"], "query": query["idx"]}}  # fmt: skip


def _wsc_entry(entry: Row) -> Iterable[Row]:
    target = entry["target"]
    spans = {name: target[name] for name in ("span1_text", "span2_text", "span2_index")}
    yield {"text": entry["text"], "label": int(entry["label"])} | spans


_COPA = ("choice1", "choice2", "premise", "question")
_WIC = ("sentence1", "sentence2", "word")
_BOOLQ, _NLI = ("passage", "question"), ("hypothesis", "premise")
_CB = labels.SUPERGLUE["cb"]
SUPERGLUE = {
    "boolq": SuperGlue("BoolQ", _classified("boolq", _BOOLQ), ["passage"], [ACCURACY], 9_427, _flat(_BOOLQ)),
    "cb": SuperGlue(
        "CB", _classified("cb", _NLI), _NLI, [metric("glue_scores.mean_f1", label_words=_CB), ACCURACY], 250, _flat(_NLI, _CB)
    ),
    "copa": SuperGlue("COPA", _classified("copa", _COPA), _COPA, [ACCURACY], 400, _flat(_COPA)),
    "multirc": SuperGlue(
        "MultiRC", multirc_form, ["paragraph"], [metric("glue_scores.multirc")], 27_243, _multirc_entry, GROUPED
    ),
    "record": SuperGlue(
        "ReCoRD", record_form, ["passage"], [metric("glue_scores.record")], 138_854, _record_entry, GROUPED_MANY
    ),
    "rte": SuperGlue("RTE", _classified("rte", _NLI), _NLI, [ACCURACY], 2_490, _flat(_NLI, labels.SUPERGLUE["rte"])),
    "wic": SuperGlue("WiC", _classified("wic", _WIC), _WIC, [ACCURACY], 5_428, _flat(_WIC)),
    "wsc": SuperGlue("WSC", wsc_form, ["text"], [ACCURACY], 259, _wsc_entry, _compared_nouns, "wsc.fixed"),
}  # fmt: skip


def register() -> None:
    """Declares the tasks, with the settings of `PublishedData`."""
    data = PublishedData()
    add_tasks([_task(name, task, data) for name, task in SUPERGLUE.items()], data)
    add_mixture("superglue_mixture", {f"superglue_{name}": min(task.rate, LIMIT) for name, task in SUPERGLUE.items()})


def _rows(name: str, task: SuperGlue, data: PublishedData, split: str, seed: int | None) -> Iterator[Row]:
    path = data.folder(task.folder, name) / {"train": "train.jsonl", "validation": "val.jsonl"}[split]
    for entry in readers.json_lines(path):
        try:
            yield from task.entry(entry)
        except (KeyError, TypeError, ValueError) as e:
            raise UserError(f"An entry of {path} has no {e}, or another form; is it the published file?") from e


def _task(name: str, task: SuperGlue, data: PublishedData) -> PublishedTask:
    prepared = data.source == TFDS
    return PublishedTask(
        f"superglue_{name}",
        tfds_rows(data, f"super_glue/{task.tfds or name}") if prepared else functools.partial(_rows, name, task, data),
        task.form,
        lambda row: "\t".join(row[column] for column in task.identity),
        halved(),
        task.metrics,
        task.scored,
        keep=not prepared,
    )
