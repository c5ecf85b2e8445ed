"""Files and folders that are complete whenever they are read, even after a kill.

A new file is written beside its place and then renamed; until then the old one stays. In a bucket, whose objects are replaced
atomically, a file is written as one object.
"""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from typing import IO, Any

from etils import epath

from adalink_jax.files import locks
from adalink_jax.files.places import is_remote


@contextlib.contextmanager
def writing(path: epath.Path) -> Iterator[IO[bytes]]:
    """A file to write to, which replaces `path` at the end of the context, and is dropped if the context fails."""
    if is_remote(path):
        with io.BytesIO() as file:
            yield file
            path.write_bytes(file.getvalue())
        return
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with new.open("wb") as file:
            yield file
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def write_bytes(path: epath.Path, data: bytes) -> None:
    """Writes `data`; until the new file is complete, `path` keeps its old contents."""
    with writing(path) as file:
        file.write(data)


def write_text(path: epath.Path, text: str) -> None:
    """Writes `text` in UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: epath.Path, value: dict[str, Any]) -> None:
    """Writes `value`; see `write_bytes`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: epath.Path) -> dict[str, Any] | None:
    """Returns the contents of `path`; None if the file is missing or damaged."""
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, json.JSONDecodeError):
        return None


@contextlib.contextmanager
def writing_folder(path: epath.Path) -> Iterator[epath.Path]:
    """A folder to write to, which replaces `path` at the end of the context, and is removed if the context fails.

    It has the name of `path` and is stored in `.NAME.partial` in the same folder, where what a killed process left is removed first. In a
    bucket it is `path` itself: its readers need a file that is written last.

    Raises:
      Taken: if another process writes `path`.
    """
    if is_remote(path):
        path.mkdir(parents=True, exist_ok=True)
        yield path
        return
    aside = path.parent / f".{path.name}.partial"
    aside.mkdir(parents=True, exist_ok=True)
    with locks.hold_folder(aside):
        try:
            new, old = aside / path.name, aside / "old"
            for folder in (new, old):
                shutil.rmtree(folder, ignore_errors=True)
            new.mkdir()
            yield new
            if path.exists():
                path.rename(old)
            new.rename(path)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
