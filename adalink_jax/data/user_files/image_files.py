"""The images that a table names: in a folder, or in an archive (.zip, .tar) that is read in place.

Invariant: nothing outside that folder is read, whatever a table says.
"""

import functools
import hashlib
import os
import posixpath
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from adalink_jax.data.images import check_bytes
from adalink_jax.data.user_files.table_rows import cell
from adalink_jax.data.user_files.text_templates import Template
from adalink_jax.errors import UserError
from adalink_jax.files.places import expanded, path_of, regular_file
from adalink_jax.near_names import did_you_mean, near_paths

ARCHIVES = (".zip", ".tar")
DAMAGED = (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error)
KEY_BYTES = 4096  # of an image, to recognise it under another name


class Pictures:
    """Images by the names in a table. It can be sent to another process, which opens the archive again.

    Attributes:
      root: the folder, or the archive.
      archive: whether it is an archive.
    """

    def __init__(self, root: str):
        """Raises:
        UserError: if there is no such folder or archive, or it is damaged.
        """
        self.root = expanded(root)
        self.archive = os.path.splitext(self.root.lower())[1] in ARCHIVES
        if self.archive:
            _opened(self.root)
        elif not path_of(self.root).is_dir():
            raise UserError(
                f"There is no folder or archive ({', '.join(ARCHIVES)}) {self.root} for the images (IMAGES){did_you_mean(near_paths(self.root, ARCHIVES))}"
            )

    def problem(self, name: str) -> str | None:
        """Why an image cannot be used, in words; None if it can."""
        if self.archive:
            return None if self._member(name) is not None else f"there is no picture {name} in {self.root}"
        path = self._path(name)
        if path is None:
            return f"its picture {name} is outside {self.root} (IMAGES)"
        is_file = path_of(path).exists() if "://" in path else os.path.isfile(path)  # neither a pipe nor a device
        return None if is_file else f"there is no picture {name} in {self.root}"

    def key(self, name: str) -> str:
        """A key that two names of the same image share: its size and first bytes; in a bucket, its path."""
        if self.archive:
            return _opened(self.root).key(self._known(name))
        path = self._known(name)
        if "://" in path:
            return path
        with open(path, "rb") as file:
            return _key(os.fstat(file.fileno()).st_size, file.read(KEY_BYTES))

    def example(self, name: str) -> dict[str, Any]:
        """The image's part of an example: `image_file`, its path, or `image`, its bytes.

        Raises:
          UserError: if it cannot be read.
        """
        known = self._known(name)
        return {"image": _opened(self.root).read(known)} if self.archive else {"image_file": known}

    def _known(self, name: str) -> str:
        """The file's path, or the name in the archive."""
        known = self._member(name) if self.archive else self._path(name)
        if known is None:
            raise UserError(f"A picture cannot be read: {self.problem(name)}.")
        return known

    def _path(self, name: str) -> str | None:
        """The file's path; None if it is outside the folder, by its name or by a link."""
        if "://" in self.root:
            path = posixpath.normpath(name)
            return None if path.startswith(("/", "..")) else f"{self.root.rstrip('/')}/{path}"
        root = os.path.abspath(self.root)
        path = os.path.normpath(os.path.join(root, name))
        real = os.path.realpath(path).startswith(os.path.realpath(root).rstrip(os.sep) + os.sep)
        return path if real and path.startswith(root.rstrip(os.sep) + os.sep) else None

    def _member(self, name: str) -> str | None:
        """The name in the archive: the same, or that of the only member whose path ends in it."""
        archive = _opened(self.root)
        if name in archive.members:
            return name
        path = posixpath.normpath(name)
        ends = lambda member: f"/{posixpath.normpath(member)}".endswith(f"/{path}")
        matches = [member for member in archive.by_last_name.get(posixpath.basename(path), ()) if ends(member)]
        return matches[0] if len(matches) == 1 else None


class RowPicture:
    """The image of a row, by a template for its name, or from a column that holds its bytes."""

    def __init__(self, template: Template, pictures: Pictures):
        self._template, self._problem = template, functools.cache(pictures.problem)

    def __call__(self, cells: Mapping[str, Any]) -> dict[str, Any] | str:
        """Returns `image_name`, or `image`, its bytes; {} if the row has no image; a str that says why it cannot be used.

        Raises:
          TypeError: for a cell that is neither text nor bytes.
        """
        columns = self._template.columns
        value = cell(cells, columns[0]) if len(columns) == 1 else None
        if isinstance(value, Mapping):  # Hugging Face's images in Parquet
            value = value.get("bytes") or value.get("path")
            cells = {columns[0]: value}
        if isinstance(value, bytes):
            return {"image": value} if value else {}
        name = self._template.text(cells)
        if not name:
            return {}
        return self._problem(name) or {"image_name": name}


def _key(size: int, first: bytes) -> str:
    return f"{size} {hashlib.blake2b(first, digest_size=16).hexdigest()}"


class _Archive:
    """The members of an archive, which threads read one at a time."""

    def __init__(self, path: str):
        self._path, self._lock = path, threading.Lock()
        raw = None
        try:
            raw = regular_file(path).open("rb")
            if path.lower().endswith(".zip"):
                file = zipfile.ZipFile(raw)
                self._open: Callable[[Any], Any] = file.open  # a member -> its bytes as a file
                self.members = {member.filename: member for member in file.infolist() if member.filename[-1:] != "/"}
            else:
                file = tarfile.open(fileobj=raw)
                self._open = file.extractfile
                self.members = {member.name: member for member in file.getmembers() if member.isfile()}
        except DAMAGED as e:
            if raw is not None:
                raw.close()
            raise UserError(f"{path} is missing, or not a complete archive ({e}).") from e

    def key(self, name: str) -> str:
        """See `Pictures.key`; a zip has the checksum of each of its files."""
        member = self.members[name]
        if isinstance(member, zipfile.ZipInfo):
            return f"{member.file_size} {member.CRC}"
        with self._lock, self._open(member) as file:
            return _key(member.size, file.read(KEY_BYTES))

    @functools.cached_property
    def by_last_name(self) -> dict[str, list[str]]:
        """Maps names without folders to names."""
        names: dict[str, list[str]] = {}
        for name in self.members:
            names.setdefault(name.rpartition("/")[2], []).append(name)
        return names

    def read(self, name: str) -> bytes:
        """Returns the bytes of a member."""
        member = self.members[name]
        check_bytes(name, member.file_size if isinstance(member, zipfile.ZipInfo) else member.size)
        try:
            with self._lock, self._open(member) as file:
                return file.read()
        except (*DAMAGED, NotImplementedError, RuntimeError) as e:
            raise UserError(f"{name} in {self._path} cannot be read ({e}); make the archive again.") from e


_opened = functools.cache(_Archive)
