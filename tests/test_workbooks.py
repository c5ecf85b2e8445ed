"""Excel workbooks as tables, for `init`, runs and `infer`."""

import datetime
import sys

import openpyxl
import pytest
from own_files_cases import GOOD, load, total, written

from adalink_jax.data.user_files.table_files import open_table
from adalink_jax.errors import UserError


def workbook(path, *sheets):
    """Each sheet is `(title, rows)`."""
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, rows in sheets:
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def test_a_workbook_is_a_table(tmp_path):
    from adalink_jax.data.user_files.column_guess import guess

    path = workbook(tmp_path / "a.xlsx", ("Sheet1", [("text", "label"), *GOOD]))
    task = load(path)
    assert total(task) == 60 and {row["references"][0] for row in task.examples("train")} == {"no", "yes"}
    assert guess(str(path), {}).settings == {"data": str(path), "inputs": "{text}", "targets": "{label}"}


def test_cells_read_as_excel_shows_them(tmp_path):
    rows = [
        (),
        ("text", None, "n", "day", "time"),
        ("a", None, 3.0, datetime.date(2024, 1, 5), datetime.datetime(2024, 1, 5, 6, 7)),
        (None, None, None),
        ("b", "  ", 2.5, "#N/A", None),
        ("c", None, 12, None, None, "beyond the header"),
    ]
    path = workbook(tmp_path / "a.xlsx", ("data", rows))
    table = open_table(str(path))
    assert table.columns == ("text", "column_2", "n", "day", "time")
    first, second, third = table.rows()
    assert first.cells == {"text": "a", "column_2": None, "n": 3, "day": "2024-01-05", "time": "2024-01-05T06:07:00"}
    assert str(first.cells["n"]) == "3" and first.line == 3
    assert (second.cells["n"], second.cells["day"], second.cells["column_2"], second.line) == (2.5, None, None, 5)
    assert third.line == 6 and third.reason == "it has 6 cells, and there are 5 columns"


def test_merged_cells_have_their_value_once_and_formulas_what_was_computed(tmp_path):
    book = openpyxl.Workbook()
    book.active.append(("text", "label"))
    book.active.append(("a", "yes"))
    book.active.append(("b", "=1+2"))  # which no program has computed
    book.active.merge_cells("A3:A4")
    book.active["B4"] = "no"
    book.save(tmp_path / "a.xlsx")
    rows = [row.cells for row in open_table(str(tmp_path / "a.xlsx")).rows()]
    assert rows == [{"text": "a", "label": "yes"}, {"text": "b", "label": None}, {"text": None, "label": "no"}]


def test_one_sheet_has_rows_and_others_may_be_empty_or_hidden(tmp_path):
    sheets = ("notes", []), ("data", [("text", "label"), *GOOD]), ("lists", [("yes",), ("no",)])
    path = workbook(tmp_path / "a.xlsx", *sheets)
    with pytest.raises(
        UserError, match=r"has 2 sheets with rows: data, lists; save the one to read as a file of its own"
    ):
        load(path)
    book = openpyxl.load_workbook(path)
    book["lists"].sheet_state = "hidden"
    book.save(path)
    assert total(load(path)) == 60
    with pytest.raises(UserError, match=r"b\.xlsx is empty\.$"):
        load(workbook(tmp_path / "b.xlsx", ("data", [])))


def test_what_is_no_workbook_is_one_sentence(tmp_path, monkeypatch):
    path = workbook(tmp_path / "a.xlsx", ("data", [("text", "label"), *GOOD]))
    whole = path.read_bytes()
    for content in (b"text,label\n", whole[:900], whole[:-30], b""):
        with pytest.raises(UserError, match=r"a\.xlsx is damaged, locked by a password, or not an Excel workbook"):
            load(written(tmp_path, "a.xlsx", content))
    with pytest.raises(UserError, match="ENCODING is for CSV"):
        load(workbook(tmp_path / "a.xlsx", ("data", [("text", "label"), *GOOD])), encoding="cp1252")
    with pytest.raises(UserError, match=r"names its columns itself; COLUMNS, DELIMITER and QUOTED are for CSV"):
        load(path, delimiter=";")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(UserError, match=r"needs openpyxl: pip install 'adalink-jax\[xlsx\]'"):
        load(path)


def test_a_workbook_that_swells_is_refused(tmp_path, monkeypatch):
    from adalink_jax.data.user_files import xlsx_files

    monkeypatch.setattr(xlsx_files, "LARGEST", 2**20)
    path = workbook(tmp_path / "a.xlsx", ("data", [("text", "label"), *((f"{i} " + "a" * 900, "b") for i in range(3000))]))  # fmt: skip
    assert path.stat().st_size < 2**20
    with pytest.raises(UserError, match="holds more than 1 MB; save it as CSV"):
        load(path)
