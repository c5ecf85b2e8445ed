"""Rows of tables, and the lines of text files, which are never longer than `LONGEST`."""

import contextlib
import dataclasses
import datetime
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, cast

from etils import epath

from adalink_jax.errors import UserError

LONGEST = 16 * 2**20  # bytes of a line, or of a row of several lines
LARGEST = 512 * 2**20  # bytes of a file that is read as a whole
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # the marks that files in it begin with
MOST_COLUMNS = 2_000
MOST_PADDING = 2**20  # zeros after the end of compressed bytes


@dataclasses.dataclass(frozen=True)
class BadRow:
    """A row that does not parse.

    Attributes:
      line: the line where it starts, from 1; in JSON arrays, Parquet and Excel the number of the row.
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
      line: the line where it starts, from 1; in JSON arrays, Parquet and a folder the number of the row.
      cells: column -> value: text; in JSON and Parquet also numbers, lists, bytes, None, and mappings, see `cell`.
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
      columns: names of the columns, see `column_names`.
      rows: starts a pass over the rows.
      guessed_unquoted: whether quotation marks are read as text because QUOTED is not set.
    """

    path: str
    columns: tuple[str, ...]
    rows: Callable[[], Iterator[Row | BadRow]]
    guessed_unquoted: bool = False


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """A value in Parquet that Python cannot hold, such as a date after the year 9999.

    Attributes:
      kind: its type in Parquet.
    """

    kind: str

    def __str__(self):
        return f"a {self.kind} out of range"


def check_columns(path: epath.PathLike, count: int) -> None:
    """Raises:
    UserError: for a table of too many columns, which would take too long to look at.
    """
    if count > MOST_COLUMNS:
        raise UserError(
            f"{path} has {count:,} columns or more; keep those that the task needs, at most {MOST_COLUMNS:,}."
        )


class _Compressed:
    """A file for `gzip`, which reads the zeros after the compressed bytes one by one, however many there are."""

    def __init__(self, raw: IO[bytes]):
        self._raw, self._single = raw, 0

    def read(self, size: int = -1) -> bytes:
        self._single += size == 1
        if self._single > MOST_PADDING:
            raise OSError(f"more than {MOST_PADDING:,} zeros follow its end")
        return self._raw.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


@contextlib.contextmanager
def _opened(path: epath.Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, which may be compressed."""
    try:
        with (
            path.open("rb") as raw,
            cast(IO[bytes], gzip.open(cast(IO[bytes], _Compressed(raw)))) if path.suffix == ".gz" else raw as file,
        ):
            yield file
    except (OSError, EOFError, zlib.error) as e:
        raise UserError(f"{path} cannot be read ({e}); copy or write it again.") from e


def whole_text(path: epath.Path, encoding: str | None = None) -> str:
    """The text of a file; the arguments are those of `lines`.

    Raises:
      UserError: for a file that is too large or damaged.
    """
    with _opened(path) as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise UserError(f"{path} is larger than {LARGEST >> 20} MB; save it as JSONL, one object per line.")
    if encoding is not None:
        return content.decode(checked_encoding(encoding), errors="surrogateescape")
    if content[:2] not in UTF_16:
        return content.decode("utf-8-sig", errors="surrogateescape")
    try:
        return content.decode("utf-16")
    except UnicodeDecodeError as e:
        raise UserError(f"{path} begins as UTF-16 and is damaged ({e.reason}); save it as UTF-8.") from e


def checked_encoding(encoding: str) -> str:
    """Raises:
    UserError: for an encoding that Python does not know, or whose lines do not end in a byte of their own.
    """
    try:
        if b"\n".decode(encoding) == "\n":
            return encoding
    except (LookupError, UnicodeError):
        pass
    raise UserError(
        f"ENCODING is {encoding!r}, which is not the name of an encoding of lines; take cp1252, shift_jis or the like."
    )


def lines(path: epath.Path, encoding: str | None = None) -> Iterator[str]:
    """Yields the lines of a file with their ends; bytes that are not valid become lone surrogates.

    Args:
      path: the file.
      encoding: of the text; None for UTF-8, or UTF-16 if the file begins with its mark.

    Raises:
      UserError: for a line that is too long, and for a damaged file.
    """
    with _opened(path) as file:
        is_utf_16 = file.read(2) in UTF_16
    if encoding is None and is_utf_16:
        yield from _utf_16_lines(path)
    else:
        yield from _byte_lines(path, "utf-8" if encoding is None else checked_encoding(encoding))


def _utf_16_lines(path: epath.Path) -> Iterator[str]:
    with _opened(path) as file, io.TextIOWrapper(file, "utf-16", newline="\n") as text:
        try:
            while line := text.readline(LONGEST + 1):
                if len(line) > LONGEST:
                    raise UserError(f"A line of {path} is longer than {LONGEST >> 20} MB; shorten it.")
                yield line
        except UnicodeDecodeError as e:
            raise UserError(f"{path} begins as UTF-16 and is damaged ({e.reason}); save it as UTF-8.") from e


def _byte_lines(path: epath.Path, encoding: str) -> Iterator[str]:
    number = 0
    with _opened(path) as file:
        while line := file.readline(LONGEST + 1):
            number += 1
            if len(line) > LONGEST:
                raise UserError(
                    f"Line {number} of {path} is longer than {LONGEST >> 20} MB; shorten it, if this is a table of lines."
                )
            if number == 1 and b"\0" in line:
                raise UserError(f"{path} is not text: its first line holds NUL characters; give a table of lines.")
            yield line.decode("utf-8-sig" if (number, encoding) == (1, "utf-8") else encoding, errors="surrogateescape")


def not_utf_8(text: str) -> bool:
    """Whether text that `lines` read holds bytes that are not UTF-8."""
    return re.search("[\udc80-\udcff]", text) is not None


def unclean(texts: Sequence[str]) -> str | None:
    """Why text that was read is not clean, in words; None if it is."""
    for text in texts:
        if (lone := re.search("[\udc80-\udcff]", text)) is not None:
            return f"it is not UTF-8 (byte 0x{ord(lone[0]) - 0xDC00:02X}); save the file as UTF-8, or name its encoding (ENCODING, --encoding)"
        if re.search("[\ud800-\udfff]", text) is not None:
            return "it holds half a character (a lone surrogate)"
        if "\0" in text:
            return "it holds a NUL character"
    return None


def column_names(cells: Mapping[str, Any]) -> Iterator[str]:
    """The columns of a row. What is nested has dotted names, but for a picture with its `bytes` or `path`."""
    nested = [*cells.items()][::-1]
    while nested:
        name, value = nested.pop()
        if isinstance(value, Mapping) and not is_picture(value):
            nested += [(f"{name}.{key}", item) for key, item in [*value.items()][::-1]]
        else:
            yield name


def cell(cells: Mapping[str, Any], name: str) -> Any:
    """The value of a column, which may be nested; None if the row has none."""
    if name in cells:
        return cells[name]
    for key, value in cells.items():
        if isinstance(value, Mapping) and name.startswith(f"{key}."):
            return cell(value, name.removeprefix(f"{key}."))
    return None


def iso_text(value: datetime.date | datetime.time) -> str:
    """A date, or a time, as ISO 8601; midnight of a day as the day."""
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    return value.isoformat()


def is_picture(value: object) -> bool:
    """Whether a cell is a picture as Hugging Face's data sets hold it: its `bytes`, its `path`, or both."""
    return isinstance(value, Mapping) and ("bytes" in value or set(value) == {"path"})


def strings(value: object) -> Iterator[str]:
    """All text in a value of JSON or Parquet."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from strings(item)
