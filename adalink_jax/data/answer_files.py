"""Writes predictions as the files that evaluation servers accept, if every row has its own id and an answer.

A row is a dict with the data set's id and a `prediction`; other fields are ignored. What a server would refuse, or score as
something that was not predicted, is an error that names the row, and no file is written.
"""

import json
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from etils import epath

from adalink_jax.data.metrics import glue_scores, labels
from adalink_jax.errors import UserError
from adalink_jax.files.places import path_of
from adalink_jax.files.whole_file import write_text

GLUE_FILES = {
    "cola": "CoLA.tsv",
    "sst2": "SST-2.tsv",
    "mrpc": "MRPC.tsv",
    "stsb": "STS-B.tsv",
    "qqp": "QQP.tsv",
    "mnli_matched": "MNLI-m.tsv",
    "mnli_mismatched": "MNLI-mm.tsv",
    "qnli": "QNLI.tsv",
    "rte": "RTE.tsv",
    "wnli": "WNLI.tsv",
    "ax": "AX.tsv",
}
# Tasks whose labels the server expects as 0 and 1; the others' as words.
_GLUE_NUMBERS = ("cola", "sst2", "mrpc", "qqp", "wnli")


def glue(
    rows: Iterable[Mapping[str, Any]], folder: epath.PathLike, task: str, *, instead_of_no_label: str | None = None
) -> epath.Path:
    """Writes a task's file for the GLUE server into `folder`, under its name there: `index<TAB>prediction`, by index.

    Args:
      rows: `idx` and `prediction`, a label word of `labels.GLUE` or for STS-B a number; one row per test example.
      folder: created if missing.
      task: one of `GLUE_FILES`.
      instead_of_no_label: a label word (STS-B: a number) to write for predictions that are not labels, because the server's
        format cannot express a missing answer. None: such a prediction is an error.

    Returns:
      The file.

    Raises:
      UserError: for an unknown task; rows without id, with the same id, or with gaps between 0 and the last id; a
        prediction that is not a label.
    """
    if task not in GLUE_FILES:
        raise UserError(f"GLUE has no file for a task {task!r}; it has {', '.join(GLUE_FILES)}.")
    checked = dict(sorted(_checked(rows, "idx")))
    for expected, number in enumerate(checked):
        if expected != number:
            raise UserError(
                f"GLUE's file for {task} needs all examples from 0 on; the one with idx {expected} is missing."
            )
    written = {}
    for idx, prediction in checked.items():
        substitute = prediction if instead_of_no_label is None else instead_of_no_label
        label = _glue_label(task, prediction) or _glue_label(task, substitute)
        if label is None:
            wanted = "a number" if task == "stsb" else " or ".join(labels.GLUE[task])
            raise UserError(
                f"{substitute!r}, for idx {idx} of {task}, is not {wanted}; pass one of these as `instead_of_no_label`."
            )
        written[idx] = label
    path = path_of(folder) / GLUE_FILES[task]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "index\tprediction\n" + "".join(f"{idx}\t{label}\n" for idx, label in written.items()))
    return path


def vqav2(rows: Iterable[Mapping[str, Any]], path: epath.PathLike) -> epath.Path:
    """Writes VQAv2's file, a JSON list of `question_id` and `answer`, from rows with `question_id` and `prediction`.

    Raises:
      UserError: if there are no rows, or one lacks an id or a prediction, or has the id of another.
    """
    return _json_list(rows, path, "question_id", "answer")


def docvqa(rows: Iterable[Mapping[str, Any]], path: epath.PathLike) -> epath.Path:
    """Writes DocVQA's file, a JSON list of `questionId` and `answer`, from rows with `questionId` and `prediction`.

    Raises:
      UserError: as for `vqav2`.
    """
    return _json_list(rows, path, "questionId", "answer")


def coco(rows: Iterable[Mapping[str, Any]], path: epath.PathLike) -> epath.Path:
    """Writes COCO's caption file, a JSON list of `image_id` and `caption`, from rows with `image_id` and `prediction`.

    Raises:
      UserError: as for `vqav2`.
    """
    return _json_list(rows, path, "image_id", "caption")


FORMATS: dict[str, Callable[..., epath.Path]] = {"glue": glue, "vqav2": vqav2, "docvqa": docvqa, "coco": coco}


def _json_list(rows: Iterable[Mapping[str, Any]], path: epath.PathLike, id_field: str, answer_field: str) -> epath.Path:
    answers = [{id_field: number, answer_field: prediction} for number, prediction in _checked(rows, id_field)]
    path = path_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(answers) + "\n")
    return path


def _checked(rows: Iterable[Mapping[str, Any]], id_field: str) -> list[tuple[int, str]]:
    """Returns ids and predictions; every row must have both, and no two rows the same id."""
    seen: dict[int, str] = {}
    for i, row in enumerate(rows):
        for field in (id_field, "prediction"):
            if field not in row:
                raise UserError(f"Row {i} has no `{field}`; it has {', '.join(map(str, row)) or 'nothing'}.")
        prediction = row["prediction"]
        try:
            number = operator.index(row[id_field])
        except TypeError:
            raise UserError(f"Row {i} has {row[id_field]!r} for its `{id_field}`; it must be a whole number.") from None
        if not isinstance(prediction, str):
            raise UserError(f"Row {i} has {prediction!r} for its `prediction`; it must be a string.")
        if number in seen:
            raise UserError(f"Row {i} has the `{id_field}` {number}, which an earlier row has.")
        seen[number] = prediction
    if not seen:
        raise UserError(f"There is no row to write; rows have `{id_field}` and `prediction`.")
    return list(seen.items())


def _glue_label(task: str, prediction: str) -> str | None:
    """A prediction in the server's form; None if it is not a label of the task."""
    if task == "stsb":
        value = glue_scores.number(prediction, math.nan)
        return None if math.isnan(value) else f"{value:.3f}"
    words = labels.GLUE[task]
    if prediction not in words:
        return None
    return str(words.index(prediction)) if task in _GLUE_NUMBERS else prediction
