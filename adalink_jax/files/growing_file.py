"""A file that grows during a run, on a local disk or in a bucket.

Objects of a bucket cannot be appended to but are replaced atomically; local files are the reverse. So the former are rewritten
whole at each flush, and the latter are appended to.
"""

from etils import epath

from adalink_jax.files.places import is_remote


class GrowingFile:
    """Has `write` and `flush`, the interface that tensorboard's record writer expects.

    Args:
      path: the file, which is created empty or replaced; its folder must exist.
    """

    def __init__(self, path: epath.Path):
        self._path, self._written, self._new = path, b"", b""
        path.write_bytes(b"")

    def write(self, data: bytes) -> None:
        """Adds `data`; it is in the file after the next `flush`."""
        self._new += data

    def flush(self) -> None:
        """Writes everything that was added."""
        if not self._new:
            return
        if is_remote(self._path):
            self._written += self._new
            self._path.write_bytes(self._written)
        else:
            with self._path.open("ab") as file:
                file.write(self._new)
        self._new = b""
