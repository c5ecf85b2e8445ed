"""Tables in the forms in which people have them: nested JSON, arrays, Arrow, folders as Hugging Face writes them."""

import gzip
import json

import pytest
from own_files_cases import (
    arrow_table,
    csv_text,
    jsonl_text,
    load,
    picture,
    save_to_disk,
    total,
    write_arrow,
    written,
)

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


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "csv.gz"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_read_by_its_mark(suffix, encoding, tmp_path):
    rows = [(f"caf\u00e9 \U0001f600 {i}", "s\u00ed") for i in range(60)]
    if "sv" in suffix:
        delimiter = "\t" if suffix == "tsv" else ","
        text = csv_text(rows, f"text{delimiter}label", delimiter).replace("\n", "\r\n")
    else:
        items = [{"text": text, "label": label} for text, label in rows]
        text = json.dumps(items) if suffix == "json" else jsonl_text(items)
    content = f"\ufeff{text}".encode(encoding)
    path = written(tmp_path, f"a.{suffix}", gzip.compress(content) if suffix.endswith("gz") else content)
    task = load(path)
    assert {row["inputs_pretokenized"] for split in task.splits for row in task.examples(split)} == {x for x, _ in rows}
    assert {row["references"][0] for row in task.examples("train")} == {"s\u00ed"}
    assert guessed(path)["targets"] == "{label}"


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json"])
def test_an_encoding_of_windows_is_guessed_with_a_word_of_the_file(suffix, tmp_path):
    from adalink_jax.data.user_files.column_guess import guess

    rows = [(f"caf\u00e9 \u20ac {i}", "oui") for i in range(60)]
    if "sv" in suffix:
        delimiter = "\t" if suffix == "tsv" else ","
        text = csv_text(rows, f"text{delimiter}label", delimiter)
    else:
        items = [{"text": text, "label": label} for text, label in rows]
        text = json.dumps(items, ensure_ascii=False)
        text = text if suffix == "json" else text[1:-1].replace("}, {", "}\n{")
    path = written(tmp_path, f"a.{suffix}", text.encode("cp1252"))
    found = guess(str(path), {})
    assert found.settings["encoding"] == "cp1252" and found.settings["targets"] == "{label}"
    assert "is not UTF-8 and is read as cp1252, with " in found.doubts[0] and "caf\u00e9" in found.doubts[0]
    task = load(None, **found.settings)
    assert {row["inputs_pretokenized"] for split in task.splits for row in task.examples(split)} == {x for x, _ in rows}


def test_an_encoding_is_taken_as_typed_and_nonsense_is_refused(tmp_path):
    from adalink_jax.serving import rows

    text = "\u65e5\u672c"
    path = written(tmp_path, "a.csv", csv_text([(f"{text} {i}", "x,"[:1]) for i in range(60)]).encode("shift_jis"))
    assert guessed(path, encoding="shift_jis")["encoding"] == "shift_jis"
    assert next(iter(load(path, encoding="shift_jis").examples("train")))["inputs_pretokenized"].startswith(text)
    for encoding in ("utf-9", "utf-16", "base64"):
        with pytest.raises(UserError, match=f"ENCODING is '{encoding}', which is not the name of"):
            load(path, encoding=encoding)
    with pytest.raises(UserError, match=r"a\.arrow is not text; ENCODING is for"):
        load(write_arrow(tmp_path / "a.arrow", arrow_table()), encoding="cp1252")
    typed = {"inputs": "{text}", "image": None, "images": None}
    with pytest.raises(UserError, match="it is not UTF-8 .*--encoding"):
        rows.of_file(str(path), typed, {"encoding": "shift_jis"}, False)
    source = rows.of_file(str(path), typed | {"encoding": "shift_jis"}, {}, False)
    assert next(source.asks()).text == f"{text} 0"


BAD_JSON = {
    "empty": ("", r"a\.json is empty"),
    "cut_short": ('[{"text": "a"},', "a.json cannot be read: it is not JSON .*; mend the file"),
    "numbers": ("[1, 2]", "holds neither an array of objects nor an object with one such array"),
    "two_arrays": ('{"a": [{"x": 1}], "b": [{"x": 1}]}', "an object with one such array"),
    "cut_utf_16": ("[]".encode("utf-16")[:-1], "begins as UTF-16 and is damaged"),
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
    from adalink_jax.serving import prediction_file, rows

    path = written(tmp_path, "a.jsonl", jsonl_text(NESTED[:2]))
    typed = {"inputs": "{review.text}", "image": None, "images": None}
    source = rows.of_file(str(path), typed, {}, False)
    asks = list(source.asks())
    assert source.columns == ("id", "review", "label") and [ask.text for ask in asks] == ["text 0", "text 1"]
    output = prediction_file.Output(str(tmp_path / f"out{suffix}"), (*source.columns, "prediction"), {})
    output.append([ask.cells | {"prediction": "p"} for ask in asks])
    output.finish()
    if suffix == ".jsonl":
        written_rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert written_rows == [row | {"prediction": "p"} for row in NESTED[:2]]


# --- Arrow, and folders as Hugging Face's `datasets` writes them ---


@pytest.mark.parametrize("form", ["stream", "file", "parquet"])
def test_arrow_is_read_with_the_names_of_labels(form, tmp_path):
    from pyarrow import parquet

    if form == "parquet":
        parquet.write_table(arrow_table(), path := tmp_path / "a.parquet")
    else:
        path = write_arrow(tmp_path / "a.arrow", arrow_table(), form)
    task = load(path)
    assert total(task) == 60 and {row["references"][0] for row in task.examples("train")} == {"bad", "good"}
    assert guessed(path) == {"data": str(path), "inputs": "{text}", "targets": "{label}"}


def test_a_missing_label_is_an_empty_target(tmp_path):
    import pyarrow

    table = arrow_table()
    table = table.set_column(1, "label", pyarrow.array([-1, *[i % 2 for i in range(59)]]))
    with pytest.raises(UserError, match=r"1 of 60 rows of train have no input or no target .*: line 1 of"):
        load(write_arrow(tmp_path / "a.arrow", table))


@pytest.mark.parametrize("form", ["stream", "file"])
def test_arrow_that_is_cut_short_is_refused(form, tmp_path):
    path = write_arrow(tmp_path / "a.arrow", arrow_table(6000), form)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="a.arrow is damaged"):
        load(path)
    with pytest.raises(UserError, match=r"a\.arrow is damaged, or not an Arrow file"):
        load(written(tmp_path, "a.arrow", b"text,label"))


def test_what_save_to_disk_wrote_is_read(tmp_path):
    one = save_to_disk(tmp_path / "one")
    settings = guessed(tmp_path / "one")
    assert settings == {"data": one, "inputs": "{text}", "targets": "{label}"} and total(load(None, **settings)) == 60
    files = {name: save_to_disk(tmp_path / "set" / name, 1, 1000 * i) for i, name in enumerate(("test", "train"))}
    written(tmp_path / "set", "dataset_dict.json", json.dumps({"splits": ["train", "test"]}))
    data = guessed(tmp_path / "set")["data"]
    assert data == {"train": files["train"][0], "test": files["test"][0]}
    task = load(None, data=data)
    assert len(task.splits["test"]) == 60 and len(task.splits["train"]) + len(task.splits["validation"]) == 60
    written(tmp_path / "set" / "train", "state.json", "{}")
    with pytest.raises(UserError, match=r"train.state\.json is missing or damaged"):
        guessed(tmp_path / "set")


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_folder_of_images_with_metadata(suffix, tmp_path):
    rows = [{"file_name": f"pictures/{i}.png", "text": f"a word {i}"} for i in range(60)]
    text = csv_text([tuple(row.values()) for row in rows], "file_name,text") if suffix == "csv" else jsonl_text(rows)
    for folder in (
        tmp_path / "all",
        tmp_path / "hub" / "data",
        *(tmp_path / "set" / split for split in ("train", "validation", "test")),
    ):
        for i in range(60):
            written(folder, f"pictures/{i}.png", picture(size=(3 + i, 3 + len(folder.name))))
        written(folder, f"metadata.{suffix}", text)
    settings = guessed(tmp_path / "all", targets="{text}")
    assert settings["data"] == f"{tmp_path}/all/metadata.{suffix}" and settings["image"] == "{file_name}"
    assert total(load(None, **settings, limits={"truncated": 1.0})) == 60
    assert guessed(tmp_path / "hub", targets="{text}")["data"] == f"{tmp_path}/hub/data/metadata.{suffix}"
    settings = guessed(tmp_path / "set", targets="{text}")
    assert [*settings["data"]] == ["train", "validation", "test"] and "images" not in settings
    task = load(None, **settings, limits={"truncated": 1.0})
    assert {len(split) for split in task.splits.values()} == {60}
    (tmp_path / "set" / "train" / f"metadata.{suffix}").unlink()
    with pytest.raises(UserError, match="has test, validation, and no train"):
        guessed(tmp_path / "set")


def test_tables_of_the_hub_are_in_a_folder_data_and_other_json_is_no_table(tmp_path):
    for split in ("train", "test"):
        write_arrow(tmp_path / "set" / "data" / f"{split}-00000-of-00001.arrow", arrow_table())
    written(tmp_path / "set", "README.md", "words")
    assert [*guessed(tmp_path / "set")["data"]] == ["train", "test"]
    for i in range(60):
        written(tmp_path, f"photos/{'ab'[i % 2]}/{i}.png", picture(size=(3 + i, 3)))
    written(tmp_path, "photos/info.json", "{}")
    assert guessed(tmp_path / "photos")["data"] == str(tmp_path / "photos")
