"""Parquet files, row by row. A value that Python cannot hold is `Unreadable`: it spoils its row only where the task uses it."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from etils import epath

from adalink_jax.data.user_files.table_rows import (
    BadRow,
    Row,
    Table,
    Unreadable,
    check_columns,
    is_picture,
    strings,
    unclean,
)
from adalink_jax.errors import UserError

if TYPE_CHECKING:
    import pyarrow
    from pyarrow import parquet

BATCH_ROWS = 256


def open_parquet(path: epath.Path) -> Table:
    """See `table_files.open_table`."""

    def rows() -> Iterator[Row | BadRow]:
        number = 0
        with _parquet_file(path, lambda: f" after row {number}") as file:
            every = (cells for batch in file.iter_batches(BATCH_ROWS) for cells in _cells(batch))
            for number, cells in enumerate(every, 1):
                if not isinstance(cells, str):
                    cells = unclean(list(strings(cells))) or cells
                yield BadRow(number, cells) if isinstance(cells, str) else Row(number, cells)

    with _parquet_file(path, lambda: ", or not a Parquet file") as file:
        names = list(_names(file.schema_arrow))
        check_columns(path, len(names))
    return Table(str(path), tuple(names), rows)


def _names(fields: "Iterable[pyarrow.Field]", prefix: str = "") -> Iterator[str]:
    """The columns of fields, as `table_rows.column_names` has them."""
    import pyarrow

    for field in fields:
        name = f"{prefix}{field.name}"
        if pyarrow.types.is_struct(field.type) and not is_picture(dict.fromkeys(part.name for part in field.type)):
            yield from _names(field.type, f"{name}.")
        else:
            yield name


def _cells(batch: "pyarrow.RecordBatch") -> list[dict[str, Any] | str]:
    """The cells of each row; or why they cannot be read, in words."""
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError, LookupError):
        return [_row(batch, number) for number in range(batch.num_rows)]


def _row(batch: "pyarrow.RecordBatch", number: int) -> dict[str, Any] | str:
    cells = {}
    for name, column in zip(batch.schema.names, batch.columns):
        try:
            cells[name] = column[number].as_py()
        except UnicodeDecodeError as e:
            return f"it is not UTF-8 (byte 0x{e.object[e.start]:02X}); write the column {name!r} as UTF-8"
        except (ValueError, OverflowError, LookupError):  # of dates and times
            cells[name] = Unreadable(str(column.type))
    return cells


@contextlib.contextmanager
def _parquet_file(path: epath.Path, where: Callable[[], str]) -> "Iterator[parquet.ParquetFile]":
    import pyarrow
    from pyarrow import parquet

    try:
        with path.open("rb") as raw, parquet.ParquetFile(raw) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as e:
        raise UserError(f"{path} is damaged{where()} ({str(e).splitlines()[0]}); copy or write it again.") from e
