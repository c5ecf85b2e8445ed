"""Tables in files, row by row: CSV, TSV, JSON, JSONL, Parquet, Arrow, Excel, and a folder of images with a subfolder per class.

Invariant: nothing is skipped silently. A row that parses is a `Row`, one that does not is a `BadRow` that says where and why, and
a file that cannot be read as a whole is a `UserError`. No more than a line, or a group of rows of Parquet or Arrow, is in memory;
a `.json` and the texts of an `.xlsx` are in memory as a whole.
"""

import collections
import dataclasses
import os
from collections.abc import Iterator, Sequence

from etils import epath

from adalink_jax.data.user_files.arrow_files import open_arrow, open_parquet
from adalink_jax.data.user_files.delimited_files import DELIMITERS, delimited
from adalink_jax.data.user_files.json_files import open_json, open_jsonl
from adalink_jax.data.user_files.table_rows import BadRow, Row, Table, check_columns, unclean
from adalink_jax.data.user_files.xlsx_files import open_xlsx
from adalink_jax.errors import UserError
from adalink_jax.files.places import path_of, regular_file

_JSON = {".jsonl": open_jsonl, ".ndjson": open_jsonl, ".json": open_json}
_BINARY = {".parquet": open_parquet, ".arrow": open_arrow, ".feather": open_arrow, ".xlsx": open_xlsx}
OF_TEXT = (*DELIMITERS, *_JSON)
SUFFIXES = (*DELIMITERS, *_JSON, *_BINARY)
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing"),
}
IMAGE, LABEL, SPLIT = "image", "label", "split"  # columns of a folder of images


def split_of(name: str) -> str | None:
    """The split that a name stands for: `train`, `validation` (or valid, val, dev, eval) or `test`; None for other names."""
    return next((split for split, names in SPLIT_NAMES.items() if name.strip().lower() in names), None)


def suffix_of(path: str) -> str:
    """A file's suffix in lower case, ignoring `.gz`."""
    return os.path.splitext(str(path).lower().removesuffix(".gz"))[1]


def open_table(
    path: str,
    columns: Sequence[str] | None = None,
    delimiter: str | None = None,
    quoted: bool | None = None,
    encoding: str | None = None,
) -> Table:
    """Opens a file, or a folder of images.

    Args:
      path: local or remote; CSV, TSV, JSON and JSONL may be compressed (`.gz`).
      columns: column names of a CSV or TSV without a header; None if its first line has them.
      delimiter: delimiter of a CSV or TSV, if no first line `sep=;` names it; None for a comma and a tab.
      quoted: whether quotation marks enclose cells (RFC 4180) or are text; None: they enclose them, except between tabs.
      encoding: of CSV, TSV, JSON and JSONL; None for UTF-8, or UTF-16 with its mark.

    Raises:
      UserError: if it is missing, no regular file, of an unknown kind, empty, or has two columns of the same name, or too many.
    """
    suffix = suffix_of(path)
    if encoding is not None and (suffix in _BINARY or path_of(path).is_dir()):
        raise UserError(f"{path} is not text; ENCODING is for CSV, TSV and JSON files.")
    if path_of(path).is_dir():
        return _image_folder(path_of(path))
    where = table_file(path)
    if suffix in DELIMITERS:
        table = delimited(where, DELIMITERS[suffix] if delimiter is None else delimiter, columns, quoted, encoding)
    elif not columns is delimiter is quoted is None:
        raise UserError(f"{path} names its columns itself; COLUMNS, DELIMITER and QUOTED are for CSV and TSV files.")
    else:
        table = _BINARY[suffix](where) if suffix in _BINARY else _JSON[suffix](where, encoding)
    check_columns(path, len(table.columns))
    twice = next((name for name, count in collections.Counter(table.columns).items() if count > 1), None)
    if twice is not None:
        source = "COLUMNS names" if columns is not None else f"{path} has"
        raise UserError(f"{source} the column {twice!r} twice; give each another name.")
    return table


def table_file(path: str) -> epath.Path:
    """The path of a table to read, as a user typed it.

    Raises:
      UserError: if there is no such file (the message names near ones), or it is not a table.
    """
    where = regular_file(path, endings=SUFFIXES)
    if suffix_of(path) in PICTURES:
        raise UserError(
            f"{path} is one picture; give the folder of all pictures, with a subfolder per class, or the table that names them."
        )
    if suffix_of(path) not in SUFFIXES:
        raise UserError(f"{path} does not end in one of {', '.join(SUFFIXES)}; save it as one of these.")
    return where


def picture_root(images: str | None, path: str) -> str:
    """The folder or archive of a table's images: `images`, or else the table's folder."""
    if images is not None:
        return images
    return path if path_of(path).is_dir() else folder_of(path)


def folder_of(path: str) -> str:
    """The folder of a file."""
    return path.rpartition("/")[0] or "."


# --- a folder of images ---


def _image_folder(folder: epath.Path) -> Table:
    """The files `CLASS/picture` or `SPLIT/CLASS/picture` as rows."""
    subfolders = sorted(
        (path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."), key=lambda p: p.name
    )
    if not subfolders:
        raise UserError(_why_no_classes(folder))
    splits = [split_of(path.name) for path in subfolders]
    if any(splits) and not all(splits):
        stray = subfolders[splits.index(None)].name
        raise UserError(
            f"{folder} has subfolders for splits, and {stray}, which is not a split; move it, or rename it."
        )
    nested = all(splits)
    depth = 3 if nested else 2

    def rows() -> Iterator[Row | BadRow]:
        for number, path in enumerate(_files_below(folder), 1):
            name = path.relative_to(folder)
            if (reason := unclean([str(name)])) is not None:
                yield BadRow(number, f"the name of {str(name)!r} cannot be read: {reason}")
            elif os.path.islink(path) and path.is_dir():
                yield BadRow(number, f"{name} is a link to a folder; copy that folder to its place")
            elif len(name.parts) != depth:
                yield BadRow(number, f"{name} is not directly in the folder of a class")
            elif path.suffix.lower() not in PICTURES:
                yield BadRow(number, f"{name} does not end in one of {', '.join(PICTURES)}")
            else:
                row = {IMAGE: str(name), LABEL: path.parent.name} | ({SPLIT: path.parent.parent.name} if nested else {})
                yield Row(number, row)

    if not any(isinstance(row, Row) for row in rows()):
        why = next((f": {row.reason}" for row in rows() if isinstance(row, BadRow)), "")
        raise UserError(
            f"There is no picture in {folder}/{'SPLIT/' if nested else ''}CLASS/{why}; it takes {', '.join(PICTURES)}."
        )
    return Table(str(folder), (IMAGE, LABEL, *((SPLIT,) if nested else ())), rows)


def _why_no_classes(folder: epath.Path) -> str:
    """The error for a folder without subfolders."""
    names = [path.name for path in folder.iterdir() if path.name[0] != "."]
    if not names:
        return f"{folder} is an empty folder; give a table, a folder of tables, or a folder of pictures."
    if any(suffix_of(name) in PICTURES for name in names):
        return (
            f"{folder} has pictures, but no subfolders; move each picture to a subfolder named after its class, or add a table "
            f"metadata.csv that names the pictures."
        )
    return (
        f"{folder} has no tables and no subfolders; give a table, or a folder of pictures with a subfolder per class."
    )


def joined(path: str, tables: Sequence[Table]) -> Table:
    """The rows of several tables in one, with consecutive numbers."""

    def rows() -> Iterator[Row | BadRow]:
        for number, row in enumerate((row for table in tables for row in table.rows()), 1):
            yield dataclasses.replace(row, line=number)

    return Table(path, tuple(dict.fromkeys(name for table in tables for name in table.columns)), rows)


def new_pictures(folder: epath.Path) -> tuple[Table, int] | None:
    """All pictures below a folder of new ones, which have no classes, as rows; with the number of other files, which are left out.

    None if no picture is directly in the folder.
    """
    is_picture = lambda path: path.suffix.lower() in PICTURES
    if not any(is_picture(path) and path.is_file() for path in folder.iterdir()):
        return None

    def rows() -> Iterator[Row | BadRow]:
        for number, path in enumerate(filter(is_picture, _files_below(folder)), 1):
            name = str(path.relative_to(folder))
            reason = unclean([name])
            yield Row(number, {IMAGE: name}) if reason is None else BadRow(number, f"the name of {name!r}: {reason}")

    others = sum(not is_picture(path) for path in _files_below(folder))
    return Table(str(folder), (IMAGE,), rows), others


def _files_below(folder: epath.Path) -> Iterator[epath.Path]:
    """All files that are not hidden, by name; links to folders, which may lead outside or in a circle, are not followed."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if not path.name.startswith("."):
            yield from _files_below(path) if path.is_dir() and not os.path.islink(path) else (path,)
