"""Where the images that a table names lie: a folder, or an archive (.zip, .tar) that is read where it is.

Invariant: nothing outside is read, whatever a table says.
"""

import functools
import hashlib
import os
import posixpath
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Mapping

from etils import epath

from adalink_jax.data.user_files.text_templates import Template
from adalink_jax.errors import UserError

ARCHIVES = (".zip", ".tar")
DAMAGED = (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error)
KEY_BYTES = 4096  # of a picture, to know it again under another name


class Pictures:
    """By the names in a table. It can be sent to another process, which opens the archive anew.

    Attributes:
      root: the folder, or the archive.
      archive: whether it is an archive.
    """

    def __init__(self, root: str):
        """Raises:
        UserError: if there is no such folder or archive, or it is damaged.
        """
        self.root = str(root)
        self.archive = os.path.splitext(self.root.lower())[1] in ARCHIVES
        if self.archive:
            _opened(self.root)
        elif not epath.Path(self.root).is_dir():
            raise UserError(
                f"There is no folder or archive ({', '.join(ARCHIVES)}) {self.root} for the images (IMAGES)."
            )

    def problem(self, name: str) -> str | None:
        """Why there is no such picture, in words; None if it is there."""
        if self.archive:
            return None if self._member(name) is not None else f"there is no picture {name} in {self.root}"
        if self._path(name) is None:
            return f"its picture {name} lies outside {self.root} (IMAGES)"
        return None if epath.Path(self._path(name)).is_file() else f"there is no picture {name} in {self.root}"

    def key(self, name: str) -> str:
        """What two names of the same picture have in common: its size and its first bytes; of a bucket its path."""
        if self.archive:
            return _opened(self.root).key(self._member(name))
        path = self._path(name)
        if "://" in path:
            return path
        with open(path, "rb") as file:
            return _key(os.fstat(file.fileno()).st_size, file.read(KEY_BYTES))

    def example(self, name: str) -> dict:
        """What stands for it in an example: `image_file`, its path, or `image`, its bytes.

        Raises:
          UserError: if it cannot be read.
        """
        if not self.archive:
            return {"image_file": self._path(name)}
        return {"image": _opened(self.root).read(self._member(name))}

    def _path(self, name: str) -> str | None:
        """The file's path; None if it is outside."""
        if "://" in self.root:
            whole = posixpath.normpath(name)
            return None if whole.startswith(("/", "..")) else f"{self.root.rstrip('/')}/{whole}"
        root = os.path.abspath(self.root)
        whole = os.path.normpath(os.path.join(root, name))
        return whole if whole.startswith(root.rstrip(os.sep) + os.sep) else None

    def _member(self, name: str) -> str | None:
        """The name in the archive: as given, or that of the one member whose path ends in it."""
        opened = _opened(self.root)
        if name in opened.names:
            return name
        whole = posixpath.normpath(name)
        ends = lambda member: f"/{posixpath.normpath(member)}".endswith(f"/{whole}")
        found = [member for member in opened.by_last_name.get(posixpath.basename(whole), ()) if ends(member)]
        return found[0] if len(found) == 1 else None


class RowPicture:
    """The picture of a row, by a template for its name, or a column that holds its bytes."""

    def __init__(self, template: Template, pictures: Pictures):
        self._template, self._pictures = template, pictures
        self._problems: dict[str, str | None] = {}

    def __call__(self, cells: Mapping) -> dict | str:
        """`image_name`, or `image`, its bytes; {} where the row has none; in words why it cannot be had.

        Raises:
          TypeError: for a cell that is neither.
        """
        columns = self._template.columns
        value = cells.get(columns[0]) if len(columns) == 1 else None
        if isinstance(value, Mapping):  # Hugging Face's images in Parquet
            value = value.get("bytes") or value.get("path")
            cells = {columns[0]: value}
        if isinstance(value, bytes):
            return {"image": value} if value else {}
        name = self._template.text(cells)
        if not name:
            return {}
        if name not in self._problems:
            self._problems[name] = self._pictures.problem(name)
        return self._problems[name] or {"image_name": name}


def _key(size: int, first: bytes) -> str:
    return f"{size} {hashlib.blake2b(first, digest_size=16).hexdigest()}"


class _Archive:
    """An archive's members."""

    def __init__(self, path: str):
        self._path, self._lock = path, threading.Lock()
        raw = None
        try:
            raw = epath.Path(path).open("rb")
            if path.lower().endswith(".zip"):
                self._file = zipfile.ZipFile(raw)
                self._members = {name: name for name in self._file.namelist() if not name.endswith("/")}
            else:
                self._file = tarfile.open(fileobj=raw)
                self._members = {member.name: member for member in self._file.getmembers() if member.isfile()}
        except DAMAGED as e:
            if raw is not None:
                raw.close()
            raise UserError(f"{path} is not there, or no whole archive ({e}).") from e
        self.names = self._members.keys()

    def key(self, name: str) -> str:
        """See `Pictures.key`; a zip knows the sum of each of its files."""
        member = self._members[name]
        if isinstance(member, str):
            about = self._file.getinfo(member)
            return f"{about.file_size} {about.CRC}"
        with self._lock:
            return _key(member.size, self._file.extractfile(member).read(KEY_BYTES))

    @functools.cached_property
    def by_last_name(self) -> dict[str, list[str]]:
        """Name without folders -> names."""
        found: dict[str, list[str]] = {}
        for name in self.names:
            found.setdefault(name.rpartition("/")[2], []).append(name)
        return found

    def read(self, name: str) -> bytes:
        """The bytes of a member."""
        member = self._members[name]
        try:
            with self._lock:
                return self._file.read(member) if isinstance(member, str) else self._file.extractfile(member).read()
        except (*DAMAGED, NotImplementedError, RuntimeError) as e:
            raise UserError(f"{name} in {self._path} cannot be read ({e}).") from e


@functools.cache
def _opened(path: str) -> _Archive:
    return _Archive(path)
