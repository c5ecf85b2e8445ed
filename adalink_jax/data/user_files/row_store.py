"""Rows in Arrow files, at random access: if they exceed memory, in a temporary file that is mapped, not read."""

import bisect
import os
import pathlib
import tempfile
import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypedDict, cast

import numpy as np
import pyarrow as pa

SCHEMA = pa.schema(
    {
        "inputs": pa.string(),
        "references": pa.list_(pa.string()),
        "image_name": pa.string(),  # of an image in a folder or an archive
        "root": pa.int8(),  # the number of that folder or archive
        "image": pa.binary(),  # an image's bytes, if the table holds them
        "line": pa.int64(),
    }
)
BATCH_ROWS = 256  # few, because they may hold images
IN_MEMORY = 256 * 2**20  # bytes; more rows go to a file


class StoredRow(TypedDict):
    """A row with the fields of `SCHEMA`."""

    inputs: str
    references: list[str]
    image_name: str | None
    root: int | None
    image: bytes | None
    line: int


class Rows:
    """Rows by number. They can be sent to another process on the same machine."""

    def __init__(self, batches: Iterable[pa.RecordBatch], path: str | None = None):
        self._batches, self._path = list(batches), path
        self._ends: list[int] = np.cumsum([len(batch) for batch in self._batches]).tolist()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> StoredRow:
        if not 0 <= number < len(self):
            raise IndexError(number)
        which = bisect.bisect_right(self._ends, number)
        batch = self._batches[which]
        row = number - (self._ends[which] - len(batch))
        return cast(StoredRow, {name: batch.column(i)[row].as_py() for i, name in enumerate(SCHEMA.names)})

    def __reduce__(self) -> tuple[Callable[..., "Rows"], tuple[Any, ...]]:
        return (_mapped, (self._path,)) if self._path else (Rows, (self._batches,))


def _mapped(path: str) -> Rows:
    reader = pa.ipc.open_file(pa.memory_map(path))
    return Rows((reader.get_batch(i) for i in range(reader.num_record_batches)), path)


class Writer:
    """Takes rows one by one, and keeps them in memory until there are too many."""

    def __init__(self, in_memory: int = IN_MEMORY):
        self._in_memory = in_memory
        self._rows: list[StoredRow] = []
        self._batches: list[pa.RecordBatch] = []
        self._bytes = 0
        self._file: tuple[pa.ipc.RecordBatchFileWriter, str] | None = None  # with its path

    def append(self, row: StoredRow) -> None:
        """Adds a row."""
        self._rows.append(row)
        if len(self._rows) == BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        batch = pa.RecordBatch.from_pylist(self._rows, schema=SCHEMA)
        self._rows = []
        self._batches.append(batch)
        self._bytes += batch.nbytes
        if self._file is None and self._bytes > self._in_memory:
            handle, path = tempfile.mkstemp(prefix="adalink-rows-", suffix=".arrow")
            os.close(handle)
            self._file = pa.ipc.new_file(path, SCHEMA), path
        if self._file is not None:
            for unwritten in self._batches:
                self._file[0].write_batch(unwritten)
            self._batches = []

    def finish(self) -> Rows:
        """Returns all rows. A file of them is deleted when they are no longer used, or when this process ends."""
        self._flush()
        if self._file is None:
            return Rows(self._batches)
        writer, path = self._file
        writer.close()
        rows = _mapped(path)
        weakref.finalize(rows, pathlib.Path(path).unlink, missing_ok=True)
        return rows
