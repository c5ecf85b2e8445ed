"""CSV and TSV files, row by row.

Quotation marks follow RFC 4180; between tabs they are text, unless QUOTED is set. A first line `sep=;`, which Excel
reads and writes, names the delimiter and is not read as a row. Empty lines are skipped.
"""

import csv
import functools
import itertools
import re
from collections.abc import Iterator, Sequence

from etils import epath

from adalink_jax.data.user_files.table_rows import LONGEST, BadRow, Row, Table, check_columns, lines, unclean
from adalink_jax.errors import UserError
from adalink_jax.files.places import regular_file

DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SEPARATOR = re.compile(r'"?sep=([^"\r\n])"?\s*', re.IGNORECASE)
_DOUBLED = re.compile(r'"(?:[^"]|"")*""(?:[^"]|"")*"')


def delimited(
    path: epath.Path, delimiter: str, columns: Sequence[str] | None, quoted: bool | None, encoding: str | None = None
) -> Table:
    """See `table_files.open_table`."""
    if len(delimiter) != 1 or delimiter in '"\r\n\0':
        raise UserError(f"DELIMITER is {delimiter!r}; it must be one character, such as ';'.")
    records = functools.partial(_records, path, delimiter, quoted, encoding)
    if columns is None:
        header = next(records(), None)
        if header is None:
            raise UserError(f"{path} is empty.")
        if isinstance(header, BadRow):
            raise UserError(f"Line {header.line} of {path}, its header, cannot be read: {header.reason}.")
        check_columns(path, len(header[1]))
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

    return Table(str(path), tuple(names), rows, guessed_unquoted=quoted is None and delimiter == "\t")


def _records(
    path: epath.Path, delimiter: str, quoted: bool | None, encoding: str | None
) -> Iterator[tuple[int, list[str], int] | BadRow]:
    """Yields `(line where a row starts, its cells, the number of its lines)`."""
    csv.field_size_limit(LONGEST)
    source, line, size = lines(path, encoding), 1, 0
    first = next(source, "")
    if (stated := separator_line(first)) is not None:
        delimiter, line = stated, 2
    else:
        source = itertools.chain([first] if first else [], source)
    quoting = csv.QUOTE_MINIMAL if quoted or (quoted is None and delimiter != "\t") else csv.QUOTE_NONE

    def bounded() -> Iterator[str]:
        nonlocal size
        for text in source:
            size += len(text)
            if size > LONGEST:
                raise csv.Error("unexpected end: the row is too long")
            yield text

    reader = csv.reader(bounded(), delimiter=delimiter, quoting=quoting, strict=True)
    before = line - 1
    while True:
        line, size = reader.line_num + 1 + before, 0
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
            yield BadRow(line, f"its quotation marks do not fit ({e})", reader.line_num + before - line + 1)
            continue
        if cells:
            yield line, cells, reader.line_num + before - line + 1


def separator_line(line: str) -> str | None:
    """The delimiter that a first line `sep=;` names; None for other lines."""
    stated = _SEPARATOR.fullmatch(line)
    return None if stated is None else stated[1]


def records(path: str, delimiter: str, quoted: bool | None = None, encoding: str | None = None) -> Iterator[list[str]]:
    """Yields the cells of each line of a CSV or TSV that parses, including the first.

    Raises:
      UserError: if it is missing, or cannot be read as a whole.
    """
    every = _records(regular_file(path), delimiter, quoted, encoding)
    return (record[1] for record in every if not isinstance(record, BadRow))


def was_quoted(path: str, delimiter: str, count: int, encoding: str | None = None) -> bool:
    """Whether the first `count` rows of a file between tabs were written with quotation marks, as pandas and `csv` write them."""
    if delimiter != "\t":
        return False
    file = regular_file(path)
    as_text = list(itertools.islice(_records(file, delimiter, False, encoding), count))
    cells = [cell for record in as_text if not isinstance(record, BadRow) for cell in record[1] if cell]
    if any(map(doubled, cells)) or (cells and all(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in cells)):
        return True
    try:
        return not _even(as_text) and _even(list(itertools.islice(_records(file, delimiter, True, encoding), count)))
    except UserError:
        return False


def doubled(cell: str) -> bool:
    """Whether a cell begins and ends with a quotation mark and holds doubled ones."""
    return cell[:1] == '"' and _DOUBLED.fullmatch(cell) is not None


def _even(rows: Sequence[tuple[int, list[str], int] | BadRow]) -> bool:
    """Whether all rows parse and have the same number of cells."""
    lengths = {0 if isinstance(record, BadRow) else len(record[1]) for record in rows}
    return len(lengths) == 1 and 0 not in lengths
