"""Parquet and Arrow files, row by row. A value that Python cannot hold is `Unreadable`: it spoils its row only where the task uses it.

Labels of Hugging Face's data sets, which are stored as numbers, are read as their names.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

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

BATCH_ROWS = 256
# The schema of a file, and then its batches of rows.
Batches = Generator[Any]


def open_parquet(path: epath.Path) -> Table:
    """See `table_files.open_table`."""
    return _opened(path, "a Parquet file", _parquet_batches)


def open_arrow(path: epath.Path) -> Table:
    """See `table_files.open_table`: Arrow's format of files (Feather), or of streams, as Hugging Face's `save_to_disk` writes them."""
    return _opened(path, "an Arrow file", _arrow_batches)


def _opened(path: epath.Path, kind: str, batches_of: Callable[[IO[bytes]], Batches]) -> Table:
    def rows() -> Iterator[Row | BadRow]:
        number = 0
        with (
            _refusing(path, lambda: f" after row {number}"),
            path.open("rb") as raw,
            contextlib.closing(batches_of(raw)) as batches,
        ):
            named = _named_labels(next(batches))
            every = (cells for batch in batches for cells in _cells(batch))
            for number, cells in enumerate(every, 1):
                if not isinstance(cells, str):
                    cells = unclean(list(strings(cells))) or named(cells)
                yield BadRow(number, cells) if isinstance(cells, str) else Row(number, cells)

    with (
        _refusing(path, lambda: f", or not {kind}"),
        path.open("rb") as raw,
        contextlib.closing(batches_of(raw)) as batches,
    ):
        schema: Any = next(batches)
    names = list(_names(schema))
    check_columns(path, len(names))
    return Table(str(path), tuple(names), rows)


def _parquet_batches(raw: IO[bytes]) -> Batches:
    from pyarrow import parquet

    with parquet.ParquetFile(raw) as file:
        yield file.schema_arrow
        yield from file.iter_batches(BATCH_ROWS)


def _arrow_batches(raw: IO[bytes]) -> Batches:
    import pyarrow

    is_file = raw.read(6) == b"ARROW1"
    raw.seek(0)
    if is_file:
        with pyarrow.ipc.open_file(raw) as file:
            yield file.schema
            batches = (file.get_batch(i) for i in range(file.num_record_batches))
            yield from _small(batches)
    else:
        with pyarrow.ipc.open_stream(raw) as stream:
            yield stream.schema
            yield from _small(stream)


def _small(batches: "Iterable[pyarrow.RecordBatch]") -> "Iterator[pyarrow.RecordBatch]":
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)


def _names(fields: "Iterable[pyarrow.Field]", prefix: str = "") -> Iterator[str]:
    """The columns of fields, as `table_rows.column_names` has them."""
    import pyarrow

    for field in fields:
        name = f"{prefix}{field.name}"
        if pyarrow.types.is_struct(field.type) and not is_picture(dict.fromkeys(part.name for part in field.type)):
            yield from _names(field.type, f"{name}.")
        else:
            yield name


def _named_labels(schema: "pyarrow.Schema") -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function that replaces the labels of a row by their names; -1 stands for a missing label."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        labels = {column: kind["names"] for column, kind in features.items() if kind.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError, AttributeError):  # of another writer
        return lambda cells: cells
    return functools.partial(_with_names, labels)


def _with_names(labels: Mapping[str, Sequence[str]], cells: dict[str, Any]) -> dict[str, Any]:
    names = {}
    for column in labels.keys() & cells.keys():
        if isinstance(number := cells[column], int) and number < len(labels[column]):
            names[column] = labels[column][number] if number >= 0 else None
    return cells | names


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
def _refusing(path: epath.Path, where: Callable[[], str]) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as e:
        raise UserError(f"{path} is damaged{where()} ({str(e).splitlines()[0]}); copy or write it again.") from e
