"""The files of evaluation servers equal files written by hand, byte for byte; ids exist and are unique."""

import json

import numpy as np
import pytest

from adalink_jax.data import answer_files
from adalink_jax.data.metrics import labels
from adalink_jax.errors import UserError


def rows(id_field, *pairs):
    return [{id_field: number, "prediction": prediction, "other": 1} for number, prediction in pairs]


@pytest.mark.parametrize(
    "task, predictions, name, expected",
    [
        ("cola", ["unacceptable", "acceptable"], "CoLA.tsv", "0\t0\n1\t1\n"),
        ("sst2", ["positive", "negative"], "SST-2.tsv", "0\t1\n1\t0\n"),
        ("mrpc", ["equivalent", "not_equivalent"], "MRPC.tsv", "0\t1\n1\t0\n"),
        ("stsb", ["3.8", "5", "-1e-1"], "STS-B.tsv", "0\t3.800\n1\t5.000\n2\t-0.100\n"),
        ("qqp", ["duplicate", "not_duplicate"], "QQP.tsv", "0\t1\n1\t0\n"),
        ("mnli_matched", ["neutral", "entailment"], "MNLI-m.tsv", "0\tneutral\n1\tentailment\n"),
        ("mnli_mismatched", ["contradiction"], "MNLI-mm.tsv", "0\tcontradiction\n"),
        ("qnli", ["not_entailment", "entailment"], "QNLI.tsv", "0\tnot_entailment\n1\tentailment\n"),
        ("rte", ["entailment"], "RTE.tsv", "0\tentailment\n"),
        ("wnli", ["not_entailment", "entailment"], "WNLI.tsv", "0\t0\n1\t1\n"),
        ("ax", ["entailment", "contradiction"], "AX.tsv", "0\tentailment\n1\tcontradiction\n"),
    ],
)
def test_glue(tmp_path, task, predictions, name, expected):
    predicted = rows("idx", *enumerate(predictions))[::-1]  # in any order
    path = answer_files.glue(predicted, tmp_path / "new", task)
    assert path == type(path)(tmp_path / "new" / name)
    assert path.read_bytes() == b"index\tprediction\n" + expected.encode()


def test_every_glue_task_has_a_file_and_labels():
    assert set(answer_files.GLUE_FILES) == set(labels.GLUE) - {"mnli"} | {"stsb"}


@pytest.mark.parametrize(
    "write, id_field, expected",
    [
        ("vqav2", "question_id", r'[{"question_id": 262148000, "answer": "2"}, {"question_id": 3, "answer": "caf\u00e9 \"x\""}]'),
        ("docvqa", "questionId", r'[{"questionId": 262148000, "answer": "2"}, {"questionId": 3, "answer": "caf\u00e9 \"x\""}]'),
        ("coco", "image_id", r'[{"image_id": 262148000, "caption": "2"}, {"image_id": 3, "caption": "caf\u00e9 \"x\""}]'),
    ],
)  # fmt: skip
def test_json_lists(tmp_path, write, id_field, expected):
    predicted = rows(id_field, (np.int64(262148000), "2"), (3, 'café "x"'))
    path = answer_files.FORMATS[write](predicted, tmp_path / "new" / "answers.json")
    assert path.read_text() == expected + "\n"
    assert [row[id_field] for row in json.loads(path.read_text())] == [262148000, 3]


@pytest.mark.parametrize("write", ["vqav2", "docvqa", "coco"])
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda rows, field: rows.clear(), "no row"),
        (lambda rows, field: rows[1].pop(field), "Row 1 has no `{field}`; it has prediction, other"),
        (lambda rows, field: rows[1].pop("prediction"), "Row 1 has no `prediction`"),
        (lambda rows, field: rows[1].update({field: 7}), "Row 1 has the `{field}` 7, which an earlier row has"),
        (lambda rows, field: rows[1].update({field: "8"}), "whole number"),
        (lambda rows, field: rows[1].update({field: 8.0}), "whole number"),
        (lambda rows, field: rows[1].update(prediction=None), "must be a string"),
    ],
)
def test_bad_rows_are_named_and_nothing_is_written(tmp_path, write, change, message):
    field = {"vqav2": "question_id", "docvqa": "questionId", "coco": "image_id"}[write]
    predicted = rows(field, (7, "a"), (8, "b"))
    change(predicted, field)
    with pytest.raises(UserError, match=message.format(field=field)):
        answer_files.FORMATS[write](predicted, tmp_path / "answers.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "task, pairs, message",
    [
        ("mnli", [(0, "neutral")], "no file for a task 'mnli'; it has cola, "),
        ("cola", [(0, "acceptable"), (2, "acceptable")], "idx 1 is missing"),
        ("cola", [(1, "acceptable")], "idx 0 is missing"),
        ("cola", [(0, "acceptable"), (0, "acceptable")], "an earlier row has"),
        ("cola", [(0, "1")], "'1', for idx 0 of cola, is not unacceptable or acceptable"),
        ("cola", [(0, "Acceptable")], "is not unacceptable or acceptable"),
        ("stsb", [(0, "five")], "is not a number"),
        ("stsb", [(0, "nan")], "is not a number"),
    ],
)
def test_bad_glue_rows(tmp_path, task, pairs, message):
    with pytest.raises(UserError, match=message):
        answer_files.glue(rows("idx", *pairs), tmp_path, task)
    assert not list(tmp_path.iterdir())


def test_predictions_that_are_not_labels_are_replaced_only_on_request(tmp_path):
    predicted = rows("idx", (0, "acceptable"), (1, "what?"))
    path = answer_files.glue(predicted, tmp_path, "cola", instead_of_no_label="unacceptable")
    assert path.read_text() == "index\tprediction\n0\t1\n1\t0\n"
    path = answer_files.glue(rows("idx", (0, "?")), tmp_path, "stsb", instead_of_no_label="2.5")
    assert path.read_text() == "index\tprediction\n0\t2.500\n"
    with pytest.raises(UserError, match="'perhaps'.* is not unacceptable or acceptable"):
        answer_files.glue(predicted, tmp_path, "cola", instead_of_no_label="perhaps")
