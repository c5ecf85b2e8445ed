"""Excel workbooks (.xlsx), row by row, by openpyxl. The first row with a value has the names of the columns; empty rows are skipped.

A cell has the value that Excel showed last: 3, not 3.0; dates as ISO 8601; an error such as #N/A is a missing value.
"""

import contextlib
import datetime
import itertools
import types
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from etils import epath

from adalink_jax.data.user_files.table_rows import (
    LARGEST,
    BadRow,
    Row,
    Table,
    check_columns,
    iso_text,
    strings,
    unclean,
)
from adalink_jax.errors import UserError

DAMAGED = (zipfile.BadZipFile, zlib.error, OSError, EOFError)


def open_xlsx(path: epath.Path) -> Table:
    """See `table_files.open_table`. The workbook has one sheet with values, hidden ones apart."""
    with _opened(path) as workbook:
        filled = [sheet.title for sheet in _visible(workbook) if next(_rows(sheet), None) is not None]
        if len(filled) != 1:
            named = f"{len(filled)} sheets with rows: {', '.join(filled)}; save the one to read as a file of its own"
            raise UserError(f"{path} has {named}." if filled else f"{path} is empty.")
        _, header = next(_rows(workbook[filled[0]]))
    while header[-1] is None:
        header.pop()
    check_columns(path, len(header))
    names = [str("" if name is None else name).strip() or f"column_{i}" for i, name in enumerate(header, 1)]

    def rows() -> Iterator[Row | BadRow]:
        with _opened(path) as workbook:
            for number, cells in itertools.islice(_rows(workbook[filled[0]]), 1, None):
                if any(cell is not None for cell in cells[len(names) :]):
                    yield BadRow(number, f"it has {len(cells)} cells, and there are {len(names)} columns")
                    continue
                cells += [None] * (len(names) - len(cells))
                reason = unclean(list(strings(cells)))
                yield BadRow(number, reason) if reason else Row(number, dict(zip(names, cells)))

    return Table(str(path), tuple(names), rows)


@contextlib.contextmanager
def _opened(path: epath.Path) -> Iterator[Any]:
    """The workbook."""
    openpyxl = _library(path)
    try:
        with path.open("rb") as raw, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what openpyxl does not read: charts, validations, styles
            with zipfile.ZipFile(raw) as archive:
                if sum(member.file_size for member in archive.infolist()) > LARGEST:
                    raise UserError(f"{path} holds more than {LARGEST >> 20} MB; save it as CSV.")
            workbook = openpyxl.load_workbook(raw, read_only=True, data_only=True)
            with contextlib.closing(workbook):
                yield workbook
    except UserError:
        raise
    except (*DAMAGED, KeyError, ValueError, TypeError, AttributeError, SyntaxError) as e:  # openpyxl checks little
        why = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise UserError(
            f"{path} is damaged, locked by a password, or not an Excel workbook ({why}); save it again."
        ) from e


def _library(path: epath.Path) -> types.ModuleType:
    try:
        import openpyxl
    except ImportError as e:
        raise UserError(f"{path} needs openpyxl: pip install 'adalink-jax[xlsx]', or save it as CSV.") from e
    return openpyxl


def _visible(workbook: Any) -> list[Any]:
    """The sheets of cells that are not hidden."""
    return [sheet for sheet in workbook.worksheets if sheet.sheet_state == "visible"]


def _rows(sheet: Any) -> Iterator[tuple[int, list[Any]]]:
    """`(number, values)` of the rows that have a value."""
    sheet.reset_dimensions()  # which other programs write wrongly
    for number, row in enumerate(sheet.iter_rows(), 1):
        values = [_value(cell) for cell in row]
        if any(value is not None for value in values):
            yield number, values


def _value(cell: Any) -> Any:
    value = cell.value
    if cell.data_type == "e" or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, (datetime.date, datetime.time)):
        return iso_text(value)
    return str(value) if isinstance(value, datetime.timedelta) else value
