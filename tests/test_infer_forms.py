"""The forms of files that `adalink infer` takes, read as a run's rows, and what it refuses instead of leaving out."""

import json

import openpyxl
import pytest
from own_files_cases import arrow_table, save_to_disk, write_arrow, written

from adalink_jax.cli.main import main
from adalink_jax.errors import UserError
from adalink_jax.serving import rows

RUN = {"inputs": "review: {text}"}
TYPED = dict.fromkeys(("inputs", "image", "images", "encoding"))


def write(folder, form):
    texts = [f"text {i}" for i in range(14)]
    if form == "arrow":
        return write_arrow(folder / "new.arrow", arrow_table(14))
    if form == "json":
        return written(folder, "new.json", json.dumps([{"text": text} for text in texts]))
    if form == "xlsx":
        book = openpyxl.Workbook()
        for text in ("text", *texts):
            book.active.append((text,))
        book.save(folder / "new.xlsx")
        return folder / "new.xlsx"
    save_to_disk(folder / "new", 2)
    return folder / "new"


@pytest.mark.parametrize("form", ["arrow", "json", "xlsx", "save_to_disk"])
def test_rows_of_every_form_are_formatted_as_the_run_s(form, tmp_path):
    source = rows.of_file(str(write(tmp_path, form)), TYPED, RUN, False)
    asks = list(source.asks())
    assert [ask.text for ask in asks][:2] == ["review: text 0", "review: text 1"]
    assert source.count == len(asks) >= 14 and len({ask.text for ask in asks}) == len(asks)
    assert "text" in source.columns


def test_a_bad_row_of_a_later_file_is_named_by_its_number_in_the_folder(tmp_path):
    save_to_disk(tmp_path / "new", 2)
    write_arrow(sorted((tmp_path / "new").glob("*.arrow"))[1], arrow_table(3).rename_columns(["other", "label"]))
    with pytest.raises(UserError, match=r"Line 31 of .*new has no input \('\{text\}' is empty there\)"):
        rows.of_file(str(tmp_path / "new"), TYPED, RUN, False)


def test_of_a_folder_of_several_splits_one_is_named(tmp_path):
    for name in ("train", "test"):
        save_to_disk(tmp_path / "set" / name, 1)
    written(tmp_path / "set", "dataset_dict.json", '{"splits": ["train", "test"]}')
    with pytest.raises(UserError, match=r"set holds several splits; name one of .*/set/test, .*/set/train\."):
        rows.of_file(str(tmp_path / "set"), TYPED, RUN, False)
    assert rows.of_file(str(tmp_path / "set" / "test"), TYPED, RUN, False).count == 60


@pytest.mark.parametrize("typed", [["--inputs={text}"], ["--image={a}", "--images=b"], ["--encoding=cp1252"]])
def test_templates_do_not_apply_to_the_examples_of_a_task(typed, tmp_path, capsys):
    command = ["infer", "task:test", str(tmp_path / "out.jsonl"), "--gin_file=gin/models/pali_nano.gin"]
    more = ["--gin.INITIAL_CHECKPOINT_PATH='bundled:pali_nano_instruct'", "--gin.VOCABULARY='bytes'"]
    assert main([*command, *more, *typed]) == 2
    said = capsys.readouterr().err
    names = " and ".join(flag.partition("=")[0] for flag in typed)
    assert f"error: {names}: task:test has the task's own rows" in " ".join(said.split())
    assert not list(tmp_path.iterdir())
