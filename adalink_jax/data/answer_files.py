"""Predictions as the files that evaluation servers take. Nothing is written unless every row has its own id and an answer.

A row is a dict with the data set's id and a `prediction`; other fields are ignored. What a server would refuse, or would
score as something else than was predicted, is an error that names the row.
"""

import json
import math
import operator
from collections.abc import Callable, Iterable, Mapping

from etils import epath

from adalink_jax.data.metrics import labels
from adalink_jax.errors import UserError

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
_GLUE_NUMBERS = ("cola", "sst2", "mrpc", "qqp", "wnli")  # whose labels the server wants as 0 and 1; else the words


def glue(
    rows: Iterable[Mapping], folder: epath.PathLike, task: str, *, instead_of_no_label: str | None = None
) -> epath.Path:
    """Writes a task's file for the GLUE server into `folder`, under its name there: `index<TAB>prediction`, by index.

    Args:
      rows: `idx` and `prediction`, a label word of `labels.GLUE` or for STS-B a number; one for each test example.
      folder: made if absent.
      task: one of `GLUE_FILES`.
      instead_of_no_label: a label word (STS-B: a number) to write for predictions that are none; the server has no way to
        be told that there was no answer. None: such a prediction is an error.

    Returns:
      The file.

    Raises:
      UserError: for an unknown task; rows without id, with the same id, or with gaps between 0 and the last id; a
        prediction that is no label.
    """
    if task not in GLUE_FILES:
        raise UserError(f"GLUE has no file for a task {task!r}; it has {', '.join(GLUE_FILES)}.")
    checked = dict(sorted(_checked(rows, "idx")))
    for expected, found in enumerate(checked):
        if expected != found:
            raise UserError(
                f"GLUE's file for {task} needs all examples from 0 on; the one with idx {expected} is missing."
            )
    written = {}
    for idx, prediction in checked.items():
        label = _glue_label(task, prediction)
        if label is None and instead_of_no_label is not None:
            label = _glue_label(task, instead_of_no_label)
        if label is None:
            wanted = "a number" if task == "stsb" else " or ".join(labels.GLUE[task])
            told = prediction if instead_of_no_label is None else instead_of_no_label
            raise UserError(
                f"{told!r}, for idx {idx} of {task}, is not {wanted}; give `instead_of_no_label`, such a one."
            )
        written[idx] = label
    path = epath.Path(folder) / GLUE_FILES[task]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("index\tprediction\n" + "".join(f"{idx}\t{label}\n" for idx, label in written.items()))
    return path


def vqav2(rows: Iterable[Mapping], path: epath.PathLike) -> epath.Path:
    """Writes VQAv2's file, a JSON list of `question_id` and `answer`, from rows with `question_id` and `prediction`.

    Raises:
      UserError: if there are no rows, or one has no id, no prediction, or an id that another has.
    """
    return _json_list(rows, path, "question_id", "answer")


def docvqa(rows: Iterable[Mapping], path: epath.PathLike) -> epath.Path:
    """Writes DocVQA's file, a JSON list of `questionId` and `answer`, from rows with `questionId` and `prediction`.

    Raises:
      UserError: as for `vqav2`.
    """
    return _json_list(rows, path, "questionId", "answer")


def coco(rows: Iterable[Mapping], path: epath.PathLike) -> epath.Path:
    """Writes COCO's caption file, a JSON list of `image_id` and `caption`, from rows with `image_id` and `prediction`.

    Raises:
      UserError: as for `vqav2`.
    """
    return _json_list(rows, path, "image_id", "caption")


FORMATS: dict[str, Callable[..., epath.Path]] = {"glue": glue, "vqav2": vqav2, "docvqa": docvqa, "coco": coco}


def _json_list(rows: Iterable[Mapping], path: epath.PathLike, id_field: str, answer_field: str) -> epath.Path:
    answers = [{id_field: number, answer_field: prediction} for number, prediction in _checked(rows, id_field)]
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(answers) + "\n")
    return path


def _checked(rows: Iterable[Mapping], id_field: str) -> list[tuple[int, str]]:
    """Ids and predictions of rows of which each has both, and no two the same id."""
    seen: dict[int, str] = {}
    for i, row in enumerate(rows):
        for field in (id_field, "prediction"):
            if field not in row:
                raise UserError(f"Row {i} has no `{field}`; it has {', '.join(map(str, row)) or 'nothing'}.")
        prediction = row["prediction"]
        try:
            number = operator.index(row[id_field])
        except TypeError:
            raise UserError(
                f"Row {i} has {row[id_field]!r} for its `{id_field}`; it has to be a whole number."
            ) from None
        if not isinstance(prediction, str):
            raise UserError(f"Row {i} has {prediction!r} for its `prediction`; it has to be a string.")
        if number in seen:
            raise UserError(f"Row {i} has the `{id_field}` {number}, which an earlier row has.")
        seen[number] = prediction
    if not seen:
        raise UserError(f"There is no row to write; rows have `{id_field}` and `prediction`.")
    return list(seen.items())


def _glue_label(task: str, prediction: str) -> str | None:
    """As the server wants it; None for what is no label of the task."""
    if task == "stsb":
        try:
            value = float(prediction)
        except ValueError:
            return None
        return f"{value:.3f}" if math.isfinite(value) else None
    words = labels.GLUE[task]
    if prediction not in words:
        return None
    return str(words.index(prediction)) if task in _GLUE_NUMBERS else prediction
