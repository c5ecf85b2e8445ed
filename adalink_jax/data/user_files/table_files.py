"""Tables in files, row by row: CSV, TSV, JSONL, Parquet, and a folder of images with a subfolder per class.

Invariant: nothing is skipped silently. A row that parses is a `Row`, one that does not is a `BadRow` that says where and why, and
a file that cannot be read as a whole is a `UserError`. No more than a line, or a group of rows of Parquet, is in memory.
"""

import contextlib
import csv
import dataclasses
import functools
import gzip
import itertools
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from adalink_jax.errors import UserError
from adalink_jax.files.places import path_of

if TYPE_CHECKING:
    from pyarrow import parquet

LONGEST = 16 * 2**20  # bytes of a line
DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*DELIMITERS, ".jsonl", ".ndjson", ".parquet")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing"),
}
IMAGE, LABEL, SPLIT = "image", "label", "split"  # columns of a folder of images


@dataclasses.dataclass(frozen=True)
class BadRow:
    """A row that does not parse.

    Attributes:
      line: the line where it starts, from 1; in Parquet the number of the row.
      reason: why, in words.
      lines: the number of lines that it takes.
    """

    line: int
    reason: str
    lines: int = 1


@dataclasses.dataclass(frozen=True)
class Row:
    """A row that parses.

    Attributes:
      line: the line where it starts, from 1; in Parquet and in a folder the number of the row.
      cells: column -> value: text; in JSONL and Parquet also numbers, lists, bytes, None.
      lines: the number of lines that it takes.
    """

    line: int
    cells: dict[str, Any]
    lines: int = 1


@dataclasses.dataclass(frozen=True)
class Table:
    """A file of rows.

    Attributes:
      path: the file.
      columns: names of the columns.
      rows: starts a pass over the rows.
    """

    path: str
    columns: tuple[str, ...]
    rows: Callable[[], Iterator[Row | BadRow]]


def split_of(name: str) -> str | None:
    """The split that a name stands for: `train`, `validation` (or valid, val, dev, eval) or `test`; None for other names."""
    return next((split for split, names in SPLIT_NAMES.items() if name.strip().lower() in names), None)


def suffix_of(path: str) -> str:
    """A file's suffix in lower case, ignoring `.gz`."""
    return os.path.splitext(str(path).lower().removesuffix(".gz"))[1]


def open_table(path: str, columns: Sequence[str] | None = None, delimiter: str | None = None) -> Table:
    """Opens a file, or a folder of images.

    Args:
      path: local or remote; CSV, TSV and JSONL may be compressed (`.gz`).
      columns: column names of a CSV or TSV without a header; None if its first line has them.
      delimiter: delimiter of a CSV or TSV; None for a comma and a tab.

    Raises:
      UserError: if it is missing, of an unknown kind, empty, or has two columns of the same name.
    """
    where = path_of(path)
    if where.is_dir():
        return _image_folder(where)
    if not where.exists():
        raise UserError(f"There is no {path}.")
    suffix = suffix_of(path)
    if suffix not in SUFFIXES:
        raise UserError(f"{path} does not end in one of {', '.join(SUFFIXES)}; save it as one of these.")
    if suffix in DELIMITERS:
        table = _delimited(where, DELIMITERS[suffix] if delimiter is None else delimiter, columns)
    elif columns is not None or delimiter is not None:
        raise UserError(f"{path} names its columns itself; COLUMNS and DELIMITER are for CSV and TSV files.")
    else:
        table = _parquet(where) if suffix == ".parquet" else _jsonl(where)
    twice = next((name for name in table.columns if table.columns.count(name) > 1), None)
    if twice is not None:
        source = "COLUMNS names" if columns is not None else f"{path} has"
        raise UserError(f"{source} the column {twice!r} twice; give each another name.")
    return table


# --- text ---


def lines(path: epath.Path) -> Iterator[str]:
    """Yields the lines of a file with their ends; bytes that are not UTF-8 become lone surrogates.

    Raises:
      UserError: for a line that is too long, for UTF-16, and for a damaged file.
    """
    number = 0
    try:
        with path.open("rb") as raw, gzip.open(raw) if path.suffix == ".gz" else raw as file:
            while line := file.readline(LONGEST + 1):
                number += 1
                if len(line) > LONGEST:
                    raise UserError(
                        f"Line {number} of {path} is longer than {LONGEST >> 20} MB; is it a table of lines?"
                    )
                if number == 1 and line[:2] in (b"\xff\xfe", b"\xfe\xff"):
                    raise UserError(f"{path} is UTF-16; save it as UTF-8.")
                if number == 1 and b"\0" in line:
                    raise UserError(f"{path} is not text: its first line holds NUL characters; is it a table of lines?")
                yield line.decode("utf-8-sig" if number == 1 else "utf-8", errors="surrogateescape")
    except (OSError, EOFError, zlib.error) as e:
        raise UserError(f"{path} cannot be read ({e}).") from e


def unclean(texts: Sequence[str]) -> str | None:
    """Why text that was read is not clean, in words; None if it is."""
    for text in texts:
        if (lone := re.search("[\udc80-\udcff]", text)) is not None:
            return f"it is not UTF-8 (byte 0x{ord(lone[0]) - 0xDC00:02X}); save the file as UTF-8"
        if re.search("[\ud800-\udfff]", text) is not None:
            return "it holds half a character (a lone surrogate)"
        if "\0" in text:
            return "it holds a NUL character"
    return None


def _delimited(path: epath.Path, delimiter: str, columns: Sequence[str] | None) -> Table:
    if len(delimiter) != 1:
        raise UserError(f"DELIMITER is {delimiter!r}; it must be one character.")
    records = functools.partial(_records, path, delimiter)
    if columns is None:
        header = next(records(), None)
        if header is None:
            raise UserError(f"{path} is empty.")
        if isinstance(header, BadRow):
            raise UserError(f"Line {header.line} of {path}, its header, cannot be read: {header.reason}.")
        names = [name.strip() or f"column_{i}" for i, name in enumerate(header[1], 1)]
        if (reason := unclean(names)) is not None:
            raise UserError(f"The header of {path} cannot be read: {reason}.")
    else:
        names = list(columns)

    def rows() -> Iterator[Row | BadRow]:
        for record in itertools.islice(records(), 1 if columns is None else 0, None):
            if isinstance(record, BadRow):
                yield record
                continue
            line, cells, taken = record
            reason = unclean(cells)
            if len(cells) != len(names):
                reason = f"it has {len(cells)} cells, and there are {len(names)} columns"
            yield BadRow(line, reason, taken) if reason else Row(line, dict(zip(names, cells)), taken)

    return Table(str(path), tuple(names), rows)


def _records(path: epath.Path, delimiter: str) -> Iterator[tuple[int, list[str], int] | BadRow]:
    """Yields `(line where a row starts, its cells, the number of its lines)`.

    Quotation marks follow RFC 4180; between tabs they are text. Empty lines are skipped.
    """
    csv.field_size_limit(LONGEST)
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(lines(path), delimiter=delimiter, quoting=quoting, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            if "unexpected end" in str(e) or "field limit" in str(e):
                raise UserError(
                    f'The quotation mark that opens in line {line} of {path} is not closed; double it (""), or close it.'
                ) from e
            if "new-line" in str(e):
                raise UserError(f"{path} ends its lines by a carriage return alone; save it with line feeds.") from e
            yield BadRow(line, f"its quotation marks do not fit ({e})", reader.line_num - line + 1)
            continue
        if cells:
            yield line, cells, reader.line_num - line + 1


def records(path: str, delimiter: str) -> Iterator[list[str]]:
    """Yields the cells of each line of a CSV or TSV that parses, including the first.

    Raises:
      UserError: if it is missing, or cannot be read as a whole.
    """
    if not path_of(path).exists():
        raise UserError(f"There is no {path}.")
    return (record[1] for record in _records(path_of(path), delimiter) if not isinstance(record, BadRow))


def _jsonl(path: epath.Path) -> Table:
    def rows() -> Iterator[Row | BadRow]:
        for number, line in enumerate(lines(path), 1):
            if not line.strip():
                continue
            row = _parsed(line)
            yield BadRow(number, row) if isinstance(row, str) else Row(number, row)

    names = dict.fromkeys(name for row in rows() if isinstance(row, Row) for name in row.cells)
    if not names and next(rows(), None) is None:
        raise UserError(f"{path} is empty.")
    return Table(str(path), tuple(names), rows)


def _parsed(line: str) -> dict[str, Any] | str:
    """The JSON object in a line, or why it is not one, in words."""
    if (reason := unclean([line])) is not None:
        return reason
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as e:
        return f"it is not JSON ({e})"
    if not isinstance(row, dict):
        return "it is not a JSON object"
    return unclean(list(_strings(row))) or row


def _strings(value: object) -> Iterator[str]:
    """All text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from _strings(item)


def _parquet(path: epath.Path) -> Table:
    def rows() -> Iterator[Row | BadRow]:
        number = 0
        with _parquet_file(path, lambda: f" after row {number}") as file:
            every = (row for batch in file.iter_batches(256) for row in batch.to_pylist())
            for number, row in enumerate(every, 1):
                yield Row(number, row)

    with _parquet_file(path, lambda: ", or not a Parquet file") as file:
        names = file.schema_arrow.names
    return Table(str(path), tuple(names), rows)


@contextlib.contextmanager
def _parquet_file(path: epath.Path, where: Callable[[], str]) -> "Iterator[parquet.ParquetFile]":
    import pyarrow
    from pyarrow import parquet

    try:
        with path.open("rb") as raw, parquet.ParquetFile(raw) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as e:
        raise UserError(f"{path} is damaged{where()} ({str(e).splitlines()[0]}).") from e


# --- a folder of images ---


def _image_folder(folder: epath.Path) -> Table:
    """The files `CLASS/picture` or `SPLIT/CLASS/picture` as rows."""
    subfolders = sorted(
        (path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."), key=lambda p: p.name
    )
    if not subfolders:
        raise UserError(f"{folder} has no subfolders; an image folder has one per class.")
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
            if len(name.parts) != depth:
                yield BadRow(number, f"{name} is not directly in the folder of a class")
            elif path.suffix.lower() not in PICTURES:
                yield BadRow(number, f"{name} does not end in one of {', '.join(PICTURES)}")
            else:
                row = {IMAGE: str(name), LABEL: path.parent.name} | ({SPLIT: path.parent.parent.name} if nested else {})
                yield Row(number, row)

    if not any(isinstance(row, Row) for row in rows()):
        raise UserError(
            f"There is no picture in {folder}/{'SPLIT/' if nested else ''}CLASS/; it takes {', '.join(PICTURES)}."
        )
    return Table(str(folder), (IMAGE, LABEL, *((SPLIT,) if nested else ())), rows)


def _files_below(folder: epath.Path) -> Iterator[epath.Path]:
    """All files that are not hidden, by name."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if not path.name.startswith("."):
            yield from _files_below(path) if path.is_dir() else (path,)
