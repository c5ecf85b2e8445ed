"""Ranges of bytes of one file, which several threads may read at once where the file is in a bucket or on the Hub.

There each call takes a round trip, whatever it carries. So files stay open, for opening one is a call too; and nothing is read ahead, since
the next range is often elsewhere.
"""

from typing import Any

from etils import epath
from fsspec.caching import BaseCache
from fsspec.spec import AbstractBufferedFile

from adalink_jax.files.hub_file import HubFile
from adalink_jax.files.places import is_remote

AT_ONCE = 16  # ranges of remote files that are read at a time, each of about `leaves.BLOCK_BYTES`


class Ranges:
    """Reads ranges of the file at `path`.

    Attributes:
      at_once: how many ranges to read at a time: one of a local file.
    """

    def __init__(self, path: epath.Path | HubFile):
        self._path, self._unused = path, []
        self._is_remote = is_remote(path)
        self.at_once = AT_ONCE if self._is_remote else 1

    def read(self, start: int, length: int) -> bytes:
        """The `length` bytes from `start`; fewer where the file ends before."""
        if not self._is_remote:
            with self._path.open("rb") as file:
                file.seek(start)
                return file.read(length)
        try:
            file = self._unused.pop()
        except IndexError:
            file = _opened(self._path)
        file.seek(start)
        values = file.read(length)
        self._unused.append(file)  # not after an error
        return values


def _opened(path: epath.Path | HubFile) -> Any:
    file: Any = path.open("rb")
    if isinstance(file, AbstractBufferedFile) and file.cache is not None:
        file.cache = BaseCache(0, file.cache.fetcher, file.size)
    return file
