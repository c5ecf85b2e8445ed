"""Examples in an Arrow file, at random access: of files larger than memory, in a temporary file that is mapped, not read."""

import bisect
import contextlib
import os
import tempfile
import weakref
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

SCHEMA = pa.schema(
    {
        "inputs": pa.string(),
        "references": pa.list_(pa.string()),
        "image_name": pa.string(),  # of a picture in a folder or an archive
        "root": pa.int8(),  # which folder or archive
        "image": pa.binary(),  # a picture's bytes, where the table holds them
        "line": pa.int64(),
    }
)
ROWS = 256  # of a batch; they may hold pictures
IN_MEMORY = 256 * 2**20  # bytes, above which examples go to a file


class Rows:
    """Examples by number. It can be sent to another process on the same machine."""

    def __init__(self, batches: Iterable[pa.RecordBatch], path: str | None = None):
        self._batches, self._path = list(batches), path
        self._ends = np.cumsum([len(batch) for batch in self._batches]).tolist()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> dict:
        if not 0 <= number < len(self):
            raise IndexError(number)
        which = bisect.bisect_right(self._ends, number)
        batch = self._batches[which]
        row = number - (self._ends[which] - len(batch))
        return {name: batch.column(i)[row].as_py() for i, name in enumerate(SCHEMA.names)}

    def __reduce__(self):
        return (_mapped, (self._path,)) if self._path else (Rows, (self._batches,))


def _mapped(path: str) -> Rows:
    reader = pa.ipc.open_file(pa.memory_map(path))
    return Rows((reader.get_batch(i) for i in range(reader.num_record_batches)), path)


class Writer:
    """Takes examples, one after the other; they are in memory until there are too many."""

    def __init__(self, in_memory: int = IN_MEMORY):
        self._in_memory = in_memory
        self._rows: list[dict] = []
        self._batches: list[pa.RecordBatch] = []
        self._bytes = 0
        self._file = self._path = None

    def append(self, row: dict) -> None:
        """Adds an example; its names are those of `SCHEMA`."""
        self._rows.append(row)
        if len(self._rows) == ROWS:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        batch = pa.RecordBatch.from_pylist(self._rows, schema=SCHEMA)
        self._rows = []
        if self._file is None and self._bytes + batch.nbytes > self._in_memory:
            handle, self._path = tempfile.mkstemp(prefix="adalink-rows-", suffix=".arrow")
            os.close(handle)
            self._file = pa.ipc.new_file(self._path, SCHEMA)
            for earlier in self._batches:
                self._file.write_batch(earlier)
            self._batches = []
        if self._file is not None:
            self._file.write_batch(batch)
        else:
            self._batches.append(batch)
            self._bytes += batch.nbytes

    def finish(self) -> Rows:
        """All of them. A file is deleted when the rows are no longer used, or this process ends."""
        self._flush()
        if self._file is None:
            return Rows(self._batches)
        self._file.close()
        rows = _mapped(self._path)
        weakref.finalize(rows, _delete, self._path)
        return rows


def _delete(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
