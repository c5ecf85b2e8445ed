"""Tables in the forms in which people have them: nested JSON, arrays, Arrow, folders as Hugging Face writes them."""

import json

import pytest
from own_files_cases import jsonl_text, load, total, written

from adalink_jax.errors import UserError, sentence

NESTED = [
    {"id": i, "review": {"text": f"text {i}", "by": None}, "label": {"id": i % 2, "name": ["no", "yes"][i % 2]}}
    for i in range(60)
]


def guessed(path, **known):
    from adalink_jax.data.user_files.column_guess import guess

    return guess(str(path), known).settings


def test_what_is_nested_in_json_has_dotted_names(tmp_path):
    path = written(tmp_path, "a.jsonl", jsonl_text(NESTED))
    task = load(path, inputs="{id} {review.text}", targets="{label.name}", split=None)
    row = task.splits["train"][0]
    assert row["inputs"].split()[1:] == ["text", row["inputs"].split()[0]] and total(task) == 60
    assert {row["references"][0] for row in task.examples("train")} == {"no", "yes"}
    with pytest.raises(
        UserError,
        match=r"the column 'label'; .*a\.jsonl has the columns id, review\.text, review\.by, label\.id, label\.name\.",
    ):
        load(path, inputs="{review.text}")  # fmt: skip


def test_a_name_with_a_dot_of_its_own_is_found_and_pictures_stay_whole(tmp_path):
    rows = [{"a.b": f"t{i}", "c": {"d.e": {"f": "yes"}}, "photo": {"path": "x.png"}} for i in range(60)]
    path = written(tmp_path, "a.jsonl", jsonl_text(rows))
    task = load(path, inputs="{a.b}", targets="{c.d.e.f}")
    assert {row["references"][0] for row in task.examples("train")} == {"yes"} and total(task) == 60
    with pytest.raises(UserError, match=r"has the columns a\.b, c\.d\.e\.f, photo\."):
        load(path)


def test_structs_of_parquet_have_dotted_names(tmp_path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(NESTED), tmp_path / "a.parquet")
    task = load(tmp_path / "a.parquet", inputs="{review.text}", targets="{label.name}")
    assert total(task) == 60 and {row["references"][0] for row in task.examples("train")} == {"no", "yes"}


def test_columns_of_nested_json_are_guessed(tmp_path):
    path = written(tmp_path, "a.jsonl", jsonl_text([row | {"label": row["label"]["name"]} for row in NESTED]))
    assert guessed(path) == {"data": str(path), "inputs": "{review.text}", "targets": "{label}"}
    squad = [
        {"context": f"c{i}", "question": f"q{i}", "answers": {"text": [f"a{i}"], "answer_start": [i]}}
        for i in range(60)
    ]
    path = written(tmp_path, "b.jsonl", jsonl_text(squad))
    assert guessed(path)["targets"] == "{answers.text}"
    assert guessed(path)["inputs"] == "context: {context} question: {question}"


@pytest.mark.parametrize("form", ["array", "in_an_object", "on_lines", "of_lines"])
def test_json_files_hold_an_array_or_lines(form, tmp_path):
    rows = [{"text": f"t{i}\u00e9", "label": "yes"} for i in range(60)]
    text = {
        "array": json.dumps(rows),
        "in_an_object": json.dumps({"version": 1, "names": ["a"], "data": rows}),
        "on_lines": json.dumps(rows, indent=1, ensure_ascii=False),
        "of_lines": jsonl_text(rows),
    }[form]
    task = load(written(tmp_path, "a.json", b"\xef\xbb\xbf" * (form == "on_lines") + text.encode()))
    assert total(task) == 60 and all(len(row["inputs_pretokenized"]) >= 3 for row in task.examples("train"))


BAD_JSON = {
    "empty": ("", r"a\.json is empty"),
    "cut_short": ('[{"text": "a"},', "a.json cannot be read: it is not JSON .*; mend the file"),
    "numbers": ("[1, 2]", "holds neither an array of objects nor an object with one such array"),
    "two_arrays": ('{"a": [{"x": 1}], "b": [{"x": 1}]}', "an object with one such array"),
    "utf_16": ("[]".encode("utf-16"), "is UTF-16"),
    "latin_1": ('[{"text": "\u00e9"}]'.encode("latin-1"), "not UTF-8"),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_what_spoils_a_json_file_is_one_sentence(name, tmp_path):
    content, message = BAD_JSON[name]
    with pytest.raises(UserError, match=message) as error:
        load(written(tmp_path, "a.json", content))
    assert "\n" not in sentence(error.value)


def test_items_that_are_not_objects_are_rows_that_do_not_parse(tmp_path):
    rows = [*({"text": f"t{i}", "label": "yes"} for i in range(60)), 7]
    with pytest.raises(UserError, match=r"1 of 61 rows .*line 61 of .*a\.json: it is not a JSON object"):
        load(written(tmp_path, "a.json", json.dumps(rows)))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_predictions_stand_beside_what_was_nested(suffix, tmp_path):
    from adalink_jax.serving import rows

    path = written(tmp_path, "a.jsonl", jsonl_text(NESTED[:2]))
    typed = {"inputs": "{review.text}", "image": None, "images": None}
    source = rows.of_file(str(path), typed, {}, False)
    asks = list(source.asks())
    assert source.columns == ("id", "review", "label") and [ask.text for ask in asks] == ["text 0", "text 1"]
    output = rows.Output(str(tmp_path / f"out{suffix}"), (*source.columns, "prediction"), {})
    output.append([ask.cells | {"prediction": "p"} for ask in asks])
    output.finish()
    if suffix == ".jsonl":
        written_rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert written_rows == [row | {"prediction": "p"} for row in NESTED[:2]]
