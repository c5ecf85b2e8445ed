"""Files and folders that are complete whenever they are read, even after a kill.

A new file is written beside its place and then renamed; until then the old one stays. In a bucket, whose objects are replaced
atomically, a file is written as one object.
"""

import contextlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from typing import IO, Any

from etils import epath

from adalink_jax.errors import UserError
from adalink_jax.files import locks
from adalink_jax.files.places import is_remote

PARTIAL = ".partial"


@contextlib.contextmanager
def writing(path: epath.Path) -> Iterator[IO[bytes]]:
    """A file to write to, which replaces `path` at the end of the context, and is dropped if the context fails.

    Raises:
      UserError: if `path` is a pipe or a device, which a renamed file would replace, or a folder.
    """
    if is_remote(path):
        with io.BytesIO() as file:
            yield file
            path.write_bytes(file.getvalue())
        return
    path = epath.Path(os.path.realpath(path))  # so that a link stays a link
    if path.exists() and not os.path.isfile(path):
        raise UserError(f"{path} is not a regular file; move it away, or write to another path.")
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
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


@contextlib.contextmanager
def writing_folder(path: epath.Path, last: Sequence[str] = ()) -> Iterator[epath.Path]:
    """A folder to write files to, which becomes `path` at the end of the context, and is removed if the context fails.

    It has the name of `path` and is beside it, in `.NAME.partial`. If `path` exists, perhaps as the root of a volume, it is in
    `path/.partial`, and its files are moved up at the end, those named in `last` after all others; files of other names are kept.
    In a bucket it is `path` itself, which holds `.partial` until it is complete. What a killed process left is removed first.

    Raises:
      Taken: if another process writes `path`.
    """
    if is_remote(path):
        with _writing_to_bucket(path):
            yield path
        return
    path = epath.Path(os.path.realpath(path))  # `..` has no name
    exists = path.exists()
    aside = path / PARTIAL if exists else path.parent / f".{path.name}{PARTIAL}"
    aside.mkdir(parents=True, exist_ok=True)
    with locks.hold_folder(aside):
        complete = True
        try:
            new = aside / (path.name or "new")
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            yield new
            if exists:
                # Stopped in between, `path` stays marked as partial, so that the next start replaces it.
                complete = False
                # What states digests, and what makes it a checkpoint, after the values.
                for file in sorted(new.iterdir(), key=lambda file: (file.name in last, file.suffix == ".json")):
                    _move(file, path / file.name)
                complete = True
            else:
                new.replace(path)
        finally:
            if complete:
                shutil.rmtree(aside, ignore_errors=True)


def _move(source: epath.Path, destination: epath.Path) -> None:
    """Renames a file or a folder; a folder that a killed process has moved there already is replaced."""
    if destination.is_dir() and not os.path.islink(destination):
        shutil.rmtree(destination)
    source.replace(destination)


@contextlib.contextmanager
def _writing_to_bucket(path: epath.Path) -> Iterator[None]:
    if not is_partial(path) and path.exists() and any(path.iterdir()):
        yield  # its objects are replaced one by one
        return
    path.mkdir(parents=True, exist_ok=True)
    with locks.hold_folder(path, name=PARTIAL):
        _empty(path)
        try:
            yield
        except BaseException:
            _empty(path)
            raise


def is_partial(path: epath.Path) -> bool:
    """Whether `path` is a folder that was being written when its process was killed, or is being written."""
    return (path / PARTIAL).exists()


def _empty(path: epath.Path) -> None:
    for item in path.iterdir():
        if item.name != PARTIAL:
            item.rmtree() if item.is_dir() else item.unlink()
