"""Tables in files, row by row: CSV, TSV, JSONL, Parquet, and a folder of images with a subfolder for each class.

Invariant: nothing is passed over in silence. A row is a dict; what does not parse is a `Bad` that says where and why; what spoils the
file as a whole is one sentence. No more than a line, or a group of rows of Parquet, is in memory.
"""

import contextlib
import csv
import dataclasses
import functools
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence

from etils import epath

from adalink_jax.errors import UserError

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
class Bad:
    """A row that does not parse.

    Attributes:
      line: where it starts, from 1 on; of Parquet the row.
      reason: why, in words.
      lines: how many lines it takes.
    """

    line: int
    reason: str
    lines: int = 1


@dataclasses.dataclass(frozen=True)
class Row:
    """A row that does.

    Attributes:
      line: where it starts, from 1 on; of Parquet and of a folder the row.
      cells: by column. Text; of JSONL and Parquet also numbers, lists, bytes, None.
      lines: how many lines it takes.
    """

    line: int
    cells: dict[str, object]
    lines: int = 1


@dataclasses.dataclass(frozen=True)
class Table:
    """A file of rows.

    Attributes:
      path: the file.
      columns: their names.
      rows: begins a pass.
    """

    path: str
    columns: tuple[str, ...]
    rows: Callable[[], "Iterator[Row | Bad]"]


def split_of(name: str) -> str | None:
    """Which split a name means: `train`, `validation` (or valid, val, dev, eval) or `test`; None for none of them."""
    return next((split for split, names in SPLIT_NAMES.items() if name.strip().lower() in names), None)


def suffix_of(path: str) -> str:
    """A file's suffix in small letters, without `.gz`."""
    return os.path.splitext(str(path).lower().removesuffix(".gz"))[1]


def open_table(path: str, columns: Sequence[str] | None = None, delimiter: str | None = None) -> Table:
    """A file, or a folder of images.

    Args:
      path: local or remote; CSV, TSV and JSONL may be packed (`.gz`).
      columns: names, of a CSV or TSV without a header; None where its first line has them.
      delimiter: of a CSV or TSV; None for a comma and a tab.

    Raises:
      UserError: if it is not there, of no known kind, empty, or has a name of a column twice.
    """
    where = epath.Path(path)
    if where.is_dir():
        return _image_folder(where)
    if not where.exists():
        raise UserError(f"There is no {path}.")
    suffix = suffix_of(path)
    if suffix not in SUFFIXES:
        raise UserError(f"{path} is none of {', '.join(SUFFIXES)}; save it as one of these, with that ending.")
    if suffix in DELIMITERS:
        return _delimited(where, DELIMITERS[suffix] if delimiter is None else delimiter, columns)
    if columns is not None or delimiter is not None:
        raise UserError(f"{path} has names of its own for its columns; COLUMNS and DELIMITER are of CSV and TSV files.")
    return _parquet(where) if suffix == ".parquet" else _jsonl(where)


# --- text ---


def lines(path: epath.Path) -> Iterator[str]:
    """The lines of a file, each with its end; bytes that are no UTF-8 are lone surrogates.

    Raises:
      UserError: for a line that is too long, UTF-16, and a file that is damaged.
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
                    raise UserError(f"{path} is no text: its first line holds NUL characters; is it a table of lines?")
                yield line.decode("utf-8-sig" if number == 1 else "utf-8", errors="surrogateescape")
    except (OSError, EOFError, zlib.error) as e:
        raise UserError(f"{path} cannot be read ({e}).") from e


def unclean(texts: Sequence[str]) -> str | None:
    """Why text is none, in words."""
    for text in texts:
        if (found := re.search("[\udc80-\udcff]", text)) is not None:
            return f"it is no UTF-8 (byte 0x{ord(found[0]) - 0xDC00:02X}); save the file as UTF-8"
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
        if isinstance(header, Bad):
            raise UserError(f"Line {header.line} of {path}, its header, cannot be read: {header.reason}.")
        names = [name.strip() or f"column_{i}" for i, name in enumerate(header[1], 1)]
        if (reason := unclean(names)) is not None:
            raise UserError(f"The header of {path} cannot be read: {reason}.")
    else:
        names = list(columns)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        where = "COLUMNS names" if columns is not None else f"{path} has"
        raise UserError(f"{where} the column {twice!r} twice; give each a name of its own.")

    def rows() -> Iterator[Row | Bad]:
        found = records()
        if columns is None:
            next(found)
        for record in found:
            if isinstance(record, Bad):
                yield record
                continue
            line, cells, taken = record
            reason = unclean(cells)
            if len(cells) != len(names):
                reason = f"it has {len(cells)} cells, and there are {len(names)} columns"
            yield Bad(line, reason, taken) if reason else Row(line, dict(zip(names, cells)), taken)

    return Table(str(path), tuple(names), rows)


def _records(path: epath.Path, delimiter: str) -> Iterator[tuple[int, list[str], int] | Bad]:
    """Cells, by the line where they start, and how many lines they take. Quotation marks are RFC 4180's, and text where tabs separate. Empty lines are no rows."""
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
            yield Bad(line, f"its quotation marks do not fit ({e})", reader.line_num - line + 1)
            continue
        if cells:
            yield line, cells, reader.line_num - line + 1


def records(path: str, delimiter: str) -> Iterator[list[str]]:
    """The cells of each line of a CSV or TSV that can be read, the first one too, whatever it is.

    Raises:
      UserError: if it is not there, or spoilt as a whole.
    """
    if not epath.Path(path).exists():
        raise UserError(f"There is no {path}.")
    return (record[1] for record in _records(epath.Path(path), delimiter) if not isinstance(record, Bad))


def _jsonl(path: epath.Path) -> Table:
    def rows() -> Iterator[Row | Bad]:
        for number, line in enumerate(lines(path), 1):
            if not line.strip():
                continue
            reason, row = unclean([line]), None
            if reason is None:
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as e:
                    reason = f"it is no JSON ({e})"
                else:
                    reason = None if isinstance(row, dict) else "it is no object of JSON"
                    reason = reason or unclean(list(_strings(row)))
            yield Bad(number, reason) if reason else Row(number, row)

    names: dict[str, None] = {}
    for row in rows():
        if isinstance(row, Row):
            names.update(dict.fromkeys(row.cells))
    if not names and next(rows(), None) is None:
        raise UserError(f"{path} is empty.")
    return Table(str(path), tuple(names), rows)


def _strings(value) -> Iterator[str]:
    """All text in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for each in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from _strings(each)


def _parquet(path: epath.Path) -> Table:
    def rows() -> Iterator[Row | Bad]:
        number = 0
        with _parquet_file(path, lambda: f" after row {number}") as file:
            for batch in file.iter_batches(256):
                for row in batch.to_pylist():
                    number += 1
                    yield Row(number, row)

    with _parquet_file(path, lambda: ", or no Parquet file") as file:
        names = file.schema_arrow.names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{path} has the column {twice!r} twice; give each a name of its own.")
    return Table(str(path), tuple(names), rows)


@contextlib.contextmanager
def _parquet_file(path: epath.Path, where: Callable[[], str]):
    import pyarrow
    from pyarrow import parquet

    try:
        with path.open("rb") as raw, parquet.ParquetFile(raw) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as e:
        raise UserError(f"{path} is damaged{where()} ({str(e).splitlines()[0]}).") from e


# --- a folder of images ---


def _image_folder(folder: epath.Path) -> Table:
    """`CLASS/picture`, or `SPLIT/CLASS/picture`."""
    shown = lambda path: not path.name.startswith(".")
    subfolders = sorted((path for path in folder.iterdir() if path.is_dir() and shown(path)), key=lambda p: p.name)
    if not subfolders:
        raise UserError(f"{folder} has no subfolders; an image folder has one for each class.")
    splits = [split_of(path.name) for path in subfolders]
    if any(splits) and not all(splits):
        stray = subfolders[splits.index(None)].name
        raise UserError(f"{folder} has subfolders for splits, and {stray}, which names none; move it, or rename it.")
    nested = all(splits)
    depth = 3 if nested else 2

    def rows() -> Iterator[Row | Bad]:
        number = 0
        for path in _files_below(folder):
            name = path.relative_to(folder)
            number += 1
            if len(name.parts) != depth:
                yield Bad(number, f"{name} lies in no folder of a class alone")
            elif path.suffix.lower() not in PICTURES:
                yield Bad(number, f"{name} is none of {', '.join(PICTURES)}")
            else:
                row = {IMAGE: str(name), LABEL: path.parent.name}
                yield Row(number, row | ({SPLIT: path.parent.parent.name} if nested else {}))

    if not any(isinstance(row, Row) for row in rows()):
        raise UserError(
            f"There is no picture in {folder}/{'SPLIT/' if nested else ''}CLASS/; it takes {', '.join(PICTURES)}."
        )
    return Table(str(folder), (IMAGE, LABEL, *((SPLIT,) if nested else ())), rows)


def _files_below(folder: epath.Path) -> Iterator[epath.Path]:
    """All that are not hidden, by name."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if not path.name.startswith("."):
            yield from _files_below(path) if path.is_dir() else (path,)
