"""Ranges of bytes of one file, which several threads may read at once where the file is in a bucket or on the Hub.

There files stay open, for opening one is a call too; and nothing is read ahead, since the next range is often elsewhere.
"""

import functools
import logging
import os
from collections.abc import Callable
from typing import Any

import fsspec
from etils import epath

from adalink_jax.files import network_calls
from adalink_jax.files.hub_file import HubFile
from adalink_jax.files.places import is_remote


class Ranges:
    """Reads ranges of the file at `path`.

    Attributes:
      at_once: how many ranges to read at a time: one of a local file.
    """

    def __init__(self, path: epath.Path | HubFile):
        self._path, self._unused = path, []
        self._open = _opening(path)
        self.at_once = 1 if self._open is None else network_calls.AT_ONCE

    def read(self, start: int, length: int) -> bytes:
        """The `length` bytes from `start`; fewer where the file ends before."""
        if self._open is None:
            with self._path.open("rb") as file:
                file.seek(start)
                return file.read(length)
        try:
            file = self._unused.pop()
        except IndexError:
            file = self._open()
        file.seek(start)
        values = file.read(length)
        self._unused.append(file)  # not after an error
        return values


def _opening(path: epath.Path | HubFile) -> Callable[[], Any] | None:
    """Opens a remote file that may stay open; None for a file on this machine, and for one that only TensorFlow can read."""
    if not is_remote(path):
        return None
    if isinstance(path, HubFile):
        return lambda: path.open("rb")
    try:
        files, name = fsspec.url_to_fs(os.fspath(path))
    except ImportError:  # TensorFlow's files hold 64 MB each, which are read ahead
        _note_tensorflow()
        return None
    return lambda: files.open(name, "rb", cache_type="none")


@functools.cache
def _note_tensorflow() -> None:
    """Says once what to install."""
    logging.getLogger(__name__).warning(
        "Files in the bucket are read through TensorFlow, which fetches 64 MB for each block; pip install 'adalink-jax[gcs]'."
    )
