"""Tasks over the user's own files: everything that can be wrong with a file is reported, and no row is lost silently."""

import csv
import decimal
import gzip
import io
import os
import socket

import numpy as np
import pytest
from own_files_cases import GOOD, count_of, csv_text, jsonl_text, load, picture, total, written

from adalink_jax.data.images import read_image
from adalink_jax.data.user_files import delimited_files, table_rows
from adalink_jax.data.user_files.image_files import Pictures
from adalink_jax.errors import UserError, sentence
from adalink_jax.files.places import regular_file

LONG = "x" * (table_rows.LONGEST + 1)
WHOLE = {
    "no_such_file": (None, b"", {}, r"There is no .*none\.csv"),
    "of_no_known_kind": ("a.docx", b"PK", {}, r"a\.docx does not end in one of \.csv"),
    "empty_csv": ("a.csv", b"", {}, r"a\.csv is empty"),
    "only_empty_lines": ("a.csv", b"\n\n\n", {}, r"a\.csv is empty"),
    "only_a_bom": ("a.csv", b"\xef\xbb\xbf", {}, r"a\.csv is empty"),
    "header_alone": ("a.csv", b"text,label\n", {}, r"no rows below its header"),
    "empty_jsonl": ("a.jsonl", b"", {}, r"a\.jsonl is empty"),
    "empty_parquet": ("a.parquet", b"", {}, r"a\.parquet is damaged, or not a Parquet"),
    "parquet_of_noise": ("a.parquet", b"PAR1" + bytes(100), {}, r"a\.parquet is damaged, or not a Parquet"),
    "column_twice": ("a.csv", csv_text(header="text,text"), {}, r"has the column 'text' twice"),
    "column_twice_by_setting": ("a.csv", csv_text(), {"columns": ("a", "a")}, r"COLUMNS names the column 'a' twice"),
    "semicolons": ("a.csv", csv_text(delimiter=";", header="text;label"), {}, r"one column, 'text;label'; is it separated by ';'\? Set DELIMITER"),
    "tabs_in_csv": ("a.csv", csv_text(delimiter="\t", header="text\tlabel"), {}, r"separated by '\\t'\?"),
    "commas_in_tsv": ("a.tsv", csv_text(), {}, r"separated by ','\?"),
    "delimiter_of_two": ("a.csv", csv_text(), {"delimiter": "||"}, r"DELIMITER is '\|\|'; it must be one character"),
    "delimiter_of_jsonl": ("a.jsonl", jsonl_text([{"text": "a", "label": "b"}]), {"delimiter": ","}, r"COLUMNS, DELIMITER and QUOTED are for CSV"),
    "cut_utf_16": ("a.csv", csv_text().encode("utf-16")[:-1], {}, r"begins as UTF-16 and is damaged \(.*\); save it as UTF-8"),
    "latin_1_header": ("a.csv", "té,label\n".encode("latin-1"), {}, r"header of .* cannot be read: it is not UTF-8 \(byte 0xE9\)"),
    "nul_in_header": ("a.csv", b"te\0xt,label\na,b\n", {}, r"is not text: its first line holds NUL"),
    "line_of_16_mb": ("a.csv", csv_text() + LONG, {}, r"Line 62 of .* is longer than 16 MB"),
    "quote_never_closed": ("a.csv", csv_text() + '"open,yes\n' + csv_text(), {}, r"quotation mark that opens in line 62 .* is not closed"),
    "carriage_returns_alone": ("a.csv", csv_text().replace("\n", "\r"), {}, r"carriage return"),
    "gz_of_noise": ("a.csv.gz", b"no gzip", {}, r"a\.csv\.gz cannot be read"),
    "gz_damaged": ("a.csv.gz", gzip.compress(csv_text().encode() * 500)[:200] + b"?" * 900, {}, r"a\.csv\.gz cannot be read"),
    "accuracy_of_several": ("a.jsonl", jsonl_text([{"text": f"t{i}", "label": ["a", "b"]} for i in range(60)]), {}, r"several references, and METRICS 'accuracy'; use"),
    "train_of_empty_targets": ("a.csv", "text,label\n" + "a,\n" * 9, {}, r"no examples in train"),
    "gz_cut_short": ("a.csv.gz", gzip.compress(csv_text().encode() * 500)[:-900], {}, r"a\.csv\.gz cannot be read"),
    "unknown_input_column": ("a.csv", csv_text(), {"inputs": "{txt}"}, r"INPUTS names the column 'txt'; .*a\.csv has the columns text, label"),
    "unknown_target_column": ("a.csv", csv_text(), {"targets": "{y}"}, r"TARGETS names the column 'y'"),
    "brace_alone": ("a.csv", csv_text(), {"inputs": "{text"}, r"INPUTS is '\{text', with a brace alone"),
    "no_split_column": ("a.csv", csv_text(), {"split": "part"}, r"SPLIT is the column 'part'"),
    "split_of_no_name": ("a.csv", csv_text(header="text,part"), {"split": "part", "targets": "{text}"}, r"Line 2 .*'no' in its column 'part'"),
    "2001_columns": ("a.csv", ",".join(f"c{i}" for i in range(2001)) + "\n", {}, r"2,001 columns or more; keep those"),
    "2001_keys": ("a.jsonl", jsonl_text([{f"k{i}": i} for i in range(2001)]), {}, r"2,001 columns or more"),
    "delimiter_a_quote": ("a.csv", csv_text(), {"delimiter": '"'}, r"DELIMITER is '\"'; it must be one character"),
    "every_row_ragged": ("a.csv", "text,label\n" + "a,b,c\n" * 60, {}, r"no examples in train: line 2 of .*: it has 3 cells"),
    "one_row": ("a.csv", csv_text(GOOD[:1]), {}, r"The split \w+ has no examples; give it rows of its own \(DATA\)"),
    "files_and_split_column": ("a.csv", csv_text(), {"split": "label", "data": {"train": "A", "test": "A"}}, r"give one of them"),
    "no_file_to_train_on": ("a.csv", csv_text(), {"data": {"test": "A"}}, r"takes a file, or files by 'train'"),
    "unknown_metric": ("a.csv", csv_text(), {"metrics": ("bleurt",)}, r"METRICS has 'bleurt'"),
    "unknown_limit": ("a.csv", csv_text(), {"limits": {"cut": 0.1}}, r"LIMITS has 'cut'"),
    "limit_of_two": ("a.csv", csv_text(), {"limits": {"empty": 2}}, r"shares from 0 to 1"),
    "shares_above_one": ("a.csv", csv_text(), {"validation_share": 0.6, "test_share": 0.6}, r"below 1 together"),
    "images_without_image": ("a.csv", csv_text(), {"images": "photos"}, r"IMAGE, which names each row's picture, is not"),
    "no_folder_of_images": ("a.csv", csv_text(), {"image": "{text}", "images": "none"}, r"There is no folder or archive .* none"),
    "archive_of_noise": ("a.zip", b"no zip", {"data": "B", "image": "{text}", "images": "A"}, r"not a complete archive"),
    "folder_without_subfolders": ("photos/a.png", picture(), {"data": "D", "inputs": "?", "image": "{image}"}, r"has pictures, but no subfolders; move each"),
    "folder_without_pictures": ("photos/cats/a.txt", b"", {"data": "P", "inputs": "?", "image": "{image}"}, r"There is no picture in"),
    "stray_folder_beside_splits": ("photos/train/cats/a.png", picture(), {"data": "S", "inputs": "?", "image": "{image}"}, r"other, which is not a split"),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_what_spoils_a_file_is_one_sentence(name, tmp_path):
    file, content, settings, message = WHOLE[name]
    path = written(tmp_path, file, content) if file else tmp_path / "none.csv"
    other = written(tmp_path, "other.csv", csv_text())
    (tmp_path / "photos" / "other").mkdir(parents=True, exist_ok=name.startswith("stray"))
    places = {"A": str(path), "B": str(other), "D": str(path.parent), "P": str(path.parent.parent), "S": str(path.parent.parent.parent)}  # fmt: skip
    if name == "folder_without_subfolders":
        os.rmdir(tmp_path / "photos" / "other")
    settings = {
        key: {split: places[at] for split, at in value.items()} if key == "data" and isinstance(value, dict)
        else places.get(value, value) if isinstance(value, str) else value
        for key, value in settings.items()
    }  # fmt: skip
    with pytest.raises(UserError, match=message) as error:
        load(path, **settings)
    message = sentence(error.value)  # gin adds lines that say where it was
    assert message.endswith((".", "?")) and "\n" not in message


# --- rows that cannot be used are counted, named and left out; too many stop the run ---

ROWS = {
    "too_few_cells": ("a.csv", "alone\n", "it has 1 cells, and there are 2 columns"),
    "too_many_cells": ("a.csv", "a,b,c\n", "it has 3 cells"),
    "trailing_comma": ("a.csv", "a,b,\n", "it has 3 cells"),
    "latin_1": ("a.csv", "caf\u00e9,no\n".encode("latin-1"), "not UTF-8 (byte 0xE9)"),
    "cut_utf_8": ("a.csv", b"caf\xc3,no\n", "not UTF-8 (byte 0xC3)"),
    "nul": ("a.csv", b"a\0b,no\n", "NUL"),
    "text_after_a_quote": ("a.csv", '"a"b,no\n', "its quotation marks do not fit"),
    "tsv_short": ("a.tsv", "alone\n", "it has 1 cells"),
    "tsv_nul": ("a.tsv", b"\0\tno\n", "NUL"),
    "no_json": ("a.jsonl", "{text: 1}\n", "it is not JSON"),
    "json_cut_short": ("a.jsonl", '{"text": "a"\n', "it is not JSON"),
    "json_list": ("a.jsonl", '["a", "b"]\n', "it is not a JSON object"),
    "json_latin_1": ("a.jsonl", '{"text": "caf\u00e9", "label": "no"}\n'.encode("latin-1"), "not UTF-8"),
    "json_object_as_text": ("a.jsonl", '{"text": {"a": 1}, "label": "no"}\n', "a cell holds dict"),
    "json_half_a_character": ("a.jsonl", '{"text": "\\ud83d", "label": "no"}\n', "half a character"),
    "json_number_of_5000_digits": ("a.jsonl", '{"text": ' + "7" * 5000 + ', "label": "no"}\n', "it is not JSON"),
    "json_deep_list": ("a.jsonl", '{"text": "a", "label": ' + "[" * 970 + "]" * 970 + "}\n", ""),
    "json_nested_deep": ("a.jsonl", '{"text": ' + "[" * 100_000 + "\n", "it is not JSON"),
}
EMPTY = {
    "no_target": ("a.csv", "a,\n"),
    "no_input": ("a.csv", ",yes\n"),
    "spaces": ("a.csv", "   ,yes\n"),
    "json_null": ("a.jsonl", '{"text": null, "label": "yes"}\n'),
    "json_without_the_key": ("a.jsonl", '{"text": "a"}\n'),
    "json_nan": ("a.jsonl", '{"text": "a", "label": NaN}\n'),
    "json_nan_input": ("a.jsonl", '{"text": NaN, "label": "yes"}\n'),
    "json_empty_list": ("a.jsonl", '{"text": "a", "label": []}\n'),
}


def good_content(name):
    if name.endswith(".jsonl"):
        return jsonl_text([{"text": text, "label": label} for text, label in GOOD]).encode()
    delimiter = "\t" if name.endswith(".tsv") else ","
    return csv_text(header=f"text{delimiter}label", delimiter=delimiter).encode()


@pytest.mark.parametrize("name", [*ROWS, *EMPTY])
def test_what_spoils_a_row_is_counted_and_named(name, tmp_path):
    file, row, *reason = (ROWS | EMPTY)[name]
    content = good_content(file) + (row if isinstance(row, bytes) else row.encode())
    path = written(tmp_path, file, content)
    kind, line = ("unparsed" if reason else "empty"), content.count(b"\n", 0, len(content) - 1) + 1
    with pytest.raises(UserError, match="mend the file" if reason else "fill them") as error:
        load(path)
    assert f"line {line} of {path}" in str(error.value) and all(words in str(error.value) for words in reason)
    task = load(path, limits={kind: 0.05})
    assert total(task) == len(GOOD) and count_of(task, kind) == 1
    assert any(f"line {line} of" in note for note in task.notes)


def test_two_stray_quotes_that_swallow_lines_are_reported(tmp_path):
    swallowed = "".join(f"lost {i},no\n" for i in range(60))
    path = written(tmp_path, "a.csv", csv_text() + f'"opens,no\n{swallowed}closes",no\n')
    task = load(path, limits={"truncated": 1.0})
    assert count_of(task, "long") == 1 and any("line 62 of" in note and "62 lines" in note for note in task.notes)
    ragged = written(tmp_path, "b.csv", csv_text() + f'"opens,no\n{swallowed}closes",no,more\n')
    with pytest.raises(UserError, match=r"62 of 122 rows of train do not parse"):
        load(ragged)


def test_a_quote_that_swallows_lines_counts_them_all(tmp_path):
    path = written(tmp_path, "a.csv", csv_text() + '"opens here\nis swallowed,no\nand this,no\n" closes"x",no\n')
    task = load(path, limits={"unparsed": 0.1})
    assert count_of(task, "unparsed") == 4 and total(task) == len(GOOD)


# --- what is read ---


@pytest.mark.parametrize(
    "name, content",
    {
        "a.csv": csv_text(),
        "bom.csv": b"\xef\xbb\xbf" + csv_text().encode(),
        "crlf.csv": csv_text().replace("\n", "\r\n"),
        "no_last_newline.csv": csv_text()[:-1],
        "quoted.csv": csv_text().replace("text 7,", '"text 7",'),
        "blank_lines.csv": csv_text().replace("text 9", "\n\ntext 9"),
        "a.tsv": csv_text(delimiter="\t", header="text\tlabel"),
        "A.TSV": csv_text(delimiter="\t", header="text\tlabel"),
        "a.csv.gz": gzip.compress(csv_text().encode()),
        "spaces.csv": csv_text(header=" text , label ").replace("text 3,", "  text 3  ,"),
    }.items(),
)
def test_forms_of_a_table_are_read_alike(name, content, tmp_path):
    task = load(written(tmp_path, name, content))
    rows = [row for split in ("train", "validation", "test") for row in task.examples(split)]
    assert sorted((row["inputs_pretokenized"], row["references"][0]) for row in rows) == sorted(GOOD)


def test_quotes_newlines_and_doubled_quotes_stay_in_a_csv_and_quotes_are_text_in_a_tsv(tmp_path):
    rows = [('a "b" c', "one,\ntwo"), *GOOD]
    out = io.StringIO()
    csv.writer(out).writerows([("text", "label"), *rows])
    everything = lambda task: {row["inputs_pretokenized"]: row for split in task.splits for row in task.examples(split)}
    limits = {"truncated": 1.0}
    assert everything(load(written(tmp_path, "a.csv", out.getvalue()), limits=limits))['a "b" c']["references"] == [
        "one,\ntwo"
    ]
    tsv = csv_text([*GOOD, ('"open', "yes")], "text\tlabel", "\t")
    assert '"open' in everything(load(written(tmp_path, "a.tsv", tsv)))


def test_a_table_without_a_header_has_names_by_setting(tmp_path):
    path = written(tmp_path, "a.tsv", csv_text(delimiter="\t").split("\n", 1)[1])
    assert total(load(path, columns=("text", "label"))) == len(GOOD)


def test_templates_braces_numbers_and_lists(tmp_path):
    rows = [{"n": i, "x": 0.5, "ok": True, "a b": "words", "answers": ["first", "", "second"]} for i in range(60)]
    path = written(tmp_path, "a.jsonl", jsonl_text(rows))
    task = load(path, inputs="{{{n}}} {x} {ok} {a b}", targets="{answers}", metrics=("exact_match",))
    row = next(iter(task.examples("train")))
    assert row["inputs_pretokenized"].endswith("} 0.5 True words") and row["inputs_pretokenized"][0] == "{"
    assert row["references"] == ["first", "second"]


def test_one_of_several_references_is_drawn_by_the_seed_and_all_are_scored(tmp_path):
    rows = [{"text": f"t{i}", "label": ["a", "b", "c"]} for i in range(100)]
    task = load(written(tmp_path, "a.jsonl", jsonl_text(rows)), metrics=("exact_match",))
    drawn = lambda seed: [row["targets_pretokenized"] for row in task.examples("train", seed)]
    assert set(drawn(1)) == {"a", "b", "c"} and drawn(1) == drawn(1) != drawn(2)
    examples = list(task.examples("test"))
    assert task.score(examples, ["c"] * len(examples)) == {"exact_match": 1.0}


def test_parquet_with_pictures_numbers_and_lists(tmp_path):
    import pyarrow
    from pyarrow import parquet

    content = {
        "text": [f"t{i}" for i in range(60)],
        "label": [["a", "b"]] * 60,
        "n": list(range(60)),
        "photo": [{"bytes": picture(), "path": "x.png"}] * 60,
    }
    parquet.write_table(pyarrow.table(content), tmp_path / "a.parquet", row_group_size=7)
    settings = {"inputs": "{text} {n}", "image": "{photo}", "metrics": ("exact_match",), "group": "{n}"}
    task = load(tmp_path / "a.parquet", **settings)
    assert total(task) == 60 and next(iter(task.examples("train")))["image"] == picture()


def parquet_of(folder, label, **columns):
    import pyarrow
    from pyarrow import parquet

    texts = [f"t{i}" for i in range(60)]
    parquet.write_table(pyarrow.table({"text": texts, "label": label, **columns}), folder / "a.parquet")
    return folder / "a.parquet"


def test_decimals_are_numbers_and_nan_is_a_missing_value_in_parquet(tmp_path):
    task = load(parquet_of(tmp_path, [decimal.Decimal(f"{i % 3}.50") for i in range(60)]))
    assert {row["references"][0] for row in task.examples("train")} == {"0.50", "1.50", "2.50"}
    with pytest.raises(UserError, match="2 of 60 rows of train have no input or no target"):
        load(parquet_of(tmp_path, [float("nan") if i in (5, 17) else float(i % 3) for i in range(60)]))


def test_text_of_parquet_is_checked_and_a_date_spoils_only_a_row_that_uses_it(tmp_path):
    import pyarrow

    days = pyarrow.array([10_000_000 if i == 7 else -10_000_000 if i == 8 else i for i in range(60)], pyarrow.date32())
    labels = ["yes"] * 60
    assert total(load(parquet_of(tmp_path, labels, day=days))) == 60
    task = load(parquet_of(tmp_path, labels, day=days), inputs="{day}", limits={"unparsed": 0.1})
    assert "1970-01-03" in {row["inputs_pretokenized"] for split in task.splits for row in task.examples(split)}
    with pytest.raises(
        UserError, match=r"2 of 60 rows of train do not parse .*line 8 of .*: a cell holds date32\[day\], neither"
    ):
        load(parquet_of(tmp_path, labels, day=days), inputs="{day}")
    bad = pyarrow.array([b"caf\xe9" if i == 3 else b"no" for i in range(60)]).view(pyarrow.string())
    with pytest.raises(UserError, match=r"line 4 of .*: it is not UTF-8 \(byte 0xE9\)"):
        load(parquet_of(tmp_path, bad))
    with pytest.raises(UserError, match=r"line 3 of .*: it holds a NUL"):
        load(parquet_of(tmp_path, ["a\0b" if i == 2 else "no" for i in range(60)]))


def special_files(folder):
    """Paths that would hang, never end, or are no files."""
    os.mkfifo(folder / "pipe.csv")
    os.symlink("circle.csv", folder / "circle.csv")
    os.symlink("/dev/zero", folder / "device.csv")
    (folder / "folder.csv").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(folder / "socket.csv"))
    names = {"pipe": "is a pipe", "circle": "cannot be read", "device": "is a device", "socket": "is a socket"}
    return {str(folder / f"{name}.csv"): words for name, words in names.items()}


def test_pipes_devices_sockets_and_circles_are_refused_without_reading(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, words in special_files(tmp_path).items():
        for read in (
            lambda path: load(path),
            lambda path: read_image(path),
            lambda path: regular_file(path),
            lambda path: next(delimited_files.records(path, ",")),
        ):
            with pytest.raises(UserError, match=words):
                read(path)
        os.rename(path, archive := f"{path}.zip")
        if "circle" not in path:
            with pytest.raises(UserError, match=words):
                Pictures(archive)
    with pytest.raises(UserError, match="is a folder; give a file"):
        regular_file(tmp_path / "folder.csv")


def test_a_row_of_many_lines_is_no_longer_than_a_line_may_be(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited_files, "LONGEST", 1000)
    path = written(tmp_path, "a.csv", csv_text() + '"\n",' * 1000)
    with pytest.raises(UserError, match=r"quotation mark that opens in line 62 .* is not closed"):
        load(path)


def test_a_line_of_excel_names_the_delimiter_and_is_no_row(tmp_path):
    task = load(written(tmp_path, "a.csv", "sep=;\r\n" + csv_text([*GOOD, ("a",)], delimiter=";", header="text;label")),
                limits={"unparsed": 0.1})  # fmt: skip
    assert total(task) == len(GOOD) and "line 63 of" in " ".join(task.notes)


def test_quotation_marks_between_tabs_are_noted_and_read_by_a_setting(tmp_path):
    out = io.StringIO()
    rows = [('he said "hi"', "no"), ("two\nlines", "yes"), *GOOD]
    csv.writer(out, delimiter="\t").writerows([("text", "label"), *rows])
    path = written(tmp_path, "a.tsv", out.getvalue())
    task = load(path, limits={"unparsed": 0.1, "truncated": 1})
    assert total(task) == len(GOOD) + 2 and any("set QUOTED = True" in note for note in task.notes)
    task = load(path, quoted=True)
    texts = {row["inputs_pretokenized"] for split in task.splits for row in task.examples(split)}
    assert {'he said "hi"', "two\nlines"} < texts and not any("QUOTED" in note for note in task.notes)
    plain = load(written(tmp_path, "b.tsv", csv_text([*GOOD, ('"a" or "b"', "no")], "text\tlabel", "\t")))
    assert not any("QUOTED" in note for note in plain.notes)


def test_a_parquet_that_is_cut_says_where(tmp_path):
    import pyarrow
    from pyarrow import parquet

    noise = np.random.default_rng(0).bytes(400_000).hex()
    table = {"text": [noise[i * 8000 : (i + 1) * 8000] for i in range(100)], "label": ["a"] * 100}
    parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet", row_group_size=10)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 30_000] = b"\xff" * 30_000
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.parquet is damaged after row \d+"):
        load(tmp_path / "a.parquet")


def test_a_compressed_table_with_holes_after_its_end_is_refused(tmp_path):
    path = written(tmp_path, "a.csv.gz", gzip.compress(csv_text().encode()))
    with open(path, "r+b") as file:
        file.truncate(2**40)
    with pytest.raises(UserError, match=r"a\.csv\.gz cannot be read \(more than 1,048,576 zeros follow its end\)"):
        load(path)
