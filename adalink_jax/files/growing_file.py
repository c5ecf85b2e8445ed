"""A file that grows while a run goes on, on a local disk or in a bucket.

Objects of a bucket cannot be appended to, but are replaced at once or not at all; local files can be appended to, but are
not replaced at once. So the one is written whole each time, and the other is appended to.
"""

import os

from etils import epath


class GrowingFile:
    """Has `write` and `flush`, as tensorboard's writer of records asks.

    Args:
      path: the file; its folder must be there.
      start: what it holds already; if None, it is made anew, and empty.
    """

    def __init__(self, path: epath.Path, start: bytes | None = None):
        self._path, self._written, self._new = path, start or b"", b""
        self._remote = "://" in os.fspath(path)
        if start is None:
            path.write_bytes(b"")

    def write(self, data: bytes) -> None:
        """Adds `data`, at the latest when `flush` is called."""
        self._new += data

    def flush(self) -> None:
        """All that was added is in the file."""
        if not self._new:
            return
        if self._remote:
            self._written += self._new
            self._path.write_bytes(self._written)
        else:
            with self._path.open("ab") as file:
                file.write(self._new)
        self._new = b""
