"""Paths that users give: where they lead, which can be a run's folder, and which are files that can be read."""

import os
import re
import stat
import tempfile
from collections.abc import Sequence
from typing import Annotated

import pydantic
from etils import epath

from adalink_jax.errors import UserError
from adalink_jax.files.hub_file import HubFile
from adalink_jax.near_names import did_you_mean, near_paths

# Orbax looks for its own files by a pattern that begins with their folder; a line break or an escape would garble output.
_PATTERN = re.compile(r"[*?\[\\\x00-\x1f\x7f]")
_KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"),
          (stat.S_ISBLK, "a device"))  # fmt: skip
_LONGEST_NAME = 255  # bytes of one part of a path, on all common disks


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is in a bucket, such as gs://, whose objects are replaced atomically but cannot be appended to or locked."""
    return "://" in os.fspath(path)


def expanded(text: str | os.PathLike[str]) -> str:
    """A path with the home folder for its `~`."""
    return os.path.expanduser(os.fspath(text))


def path_of(text: str | os.PathLike[str]) -> epath.Path:
    """A path as a user typed it: `~` is the home folder."""
    return epath.Path(expanded(text))


def regular_file(text: str | os.PathLike[str], kind: str = "file", endings: Sequence[str] = ()) -> epath.Path:
    """The path of a file to read, as a user typed it. Nothing is opened: a pipe or a device would hang, or never end.

    Args:
      text: the path.
      kind: what the error calls it.
      endings: how such files end, see `near_names.near_paths`.

    Raises:
      UserError: if there is no such file (the message names near ones), or it is a folder, a pipe, a device, a socket, or a link to
        itself.
    """
    path = path_of(text)
    try:
        if is_remote(path):
            if not path.exists():
                raise FileNotFoundError
        elif not stat.S_ISREG(mode := os.stat(path).st_mode):
            other = next((name for is_other, name in _KINDS if is_other(mode)), "not a regular file")
            raise UserError(f"{text} is {other}; give a {kind}.")
    except (FileNotFoundError, NotADirectoryError) as e:
        where = "" if is_remote(path) or path.is_absolute() else f" in the working folder, {os.getcwd()}"
        raise UserError(f"There is no {kind} {text}{where}{did_you_mean(near_paths(text, endings))}") from e
    except OSError as e:
        raise UserError(f"{text} cannot be read ({e.strerror}); give another {kind}.") from e
    except UnicodeEncodeError as e:
        raise UserError(f"{text!r} cannot be a name in this locale; set LC_ALL=C.UTF-8.") from e
    return path


def _no_pattern(folder: str) -> str:
    text = os.fspath(path_of(folder))
    if mark := _PATTERN.search(text if is_remote(text) else os.path.realpath(text)):
        raise ValueError(f"a path without {mark[0]!r}, which checkpoints cannot have in theirs")
    return folder


# The folder of a run in a configuration. The machine that reads the configuration need not have it.
RunFolder = Annotated[str, pydantic.AfterValidator(_no_pattern)]


def check_run_folder(folder: str, name: str = "MODEL_DIR") -> None:
    """Checks that a run can write to a folder on this machine, before it is made.

    Args:
      folder: as typed.
      name: of the setting or argument, for the errors.

    Raises:
      UserError: if checkpoints cannot be written below such a path, the folder is a file, or it cannot be made.
    """
    try:
        _no_pattern(folder)
    except ValueError as e:
        raise UserError(f"{name} is {folder!r}; it must be {e}.") from e
    path = os.path.realpath(path_of(folder))
    if is_remote(folder):
        return
    if long := [part for part in path.split(os.sep) if len(os.fsencode(part)) > _LONGEST_NAME]:
        raise UserError(
            f"{name} has a part of {len(os.fsencode(long[0]))} bytes ({long[0][:20]}...); give one of at most {_LONGEST_NAME}."
        )
    parent = path
    while not os.path.lexists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent):
        raise UserError(f"{name} cannot be {folder}: {parent} is not a folder; give another folder.")
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".", dir=parent))  # os.access permits /proc
    except OSError as e:
        raise UserError(
            f"{name} cannot be {folder}: {parent} cannot be written to ({e.strerror}); give another folder."
        ) from e


def is_there(path: epath.Path) -> bool:
    """Whether there is anything at `path`, also a link that leads nowhere or to itself."""
    return path.exists() or (not is_remote(path) and os.path.islink(path))


def file_size(path: epath.Path | HubFile, remedy: str = "copy it again", error: type[UserError] = UserError) -> int:
    """The size in bytes of a regular file, which may then be read; a FIFO would block and a device would never end.

    Args:
      path: the file, or a link to it.
      remedy: what the user can do, which ends the error.
      error: the class of the error.

    Raises:
      UserError: or `error`, if it is missing, no regular file, or a link that leads nowhere or to itself.
    """
    if is_remote(path):
        return path.stat().length
    try:
        about = os.stat(path)
    except (OSError, ValueError) as e:  # ValueError: a NUL in the name
        if isinstance(e, PermissionError):
            raise
        if os.path.islink(path):
            raise error(f"{path} is a link that leads to no file; {remedy}.") from e
        raise error(f"There is no {path}; {remedy}.") from e
    if not stat.S_ISREG(about.st_mode):
        raise error(f"{path} is not a regular file; {remedy}.")
    return about.st_size
