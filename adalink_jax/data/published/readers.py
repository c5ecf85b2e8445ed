"""Reads published files into rows; what is missing or of another form is reported in one sentence."""

import csv
import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from adalink_jax.errors import UserError


def read(path: epath.Path) -> bytes:
    """Reads a file, decompressed if it is a `.gz`.

    Raises:
      UserError: if it is missing or damaged.
    """
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except FileNotFoundError as e:
        raise UserError(f"There is no {path}; DATA_DIR must hold the data set as it was published.") from e
    except (OSError, EOFError) as e:
        raise UserError(f"{path} is damaged or cannot be read ({e}); copy it again.") from e


def text(path: epath.Path) -> str:
    """Reads a file as UTF-8, see `read`."""
    try:
        return read(path).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not UTF-8 ({e}); copy it again.") from e


def table(
    path: epath.Path,
    columns: Sequence[str],
    header: bool = True,
    delimiter: str = "\t",
    quoted: bool = False,
    leave_out_short: bool = False,
) -> Iterator[dict[str, str]]:
    """Yields the rows of a table.

    Args:
      path: the file; may be compressed (`.gz`).
      columns: the columns that its header must have; without a header, the names of its first columns.
      header: whether its first line names the columns.
      delimiter: separates columns.
      quoted: whether quotation marks enclose cells; else they are text.
      leave_out_short: skip rows that are too short, for files that were published with some.

    Raises:
      UserError: for another header, and for a row that is too short; names the row.
    """
    lines = io.StringIO(text(path), newline="" if quoted else "\n")
    rows = csv.reader(lines, delimiter=delimiter) if quoted else (x.rstrip("\r\n").split(delimiter) for x in lines)
    names = next(rows, []) if header else list(columns)
    missing = [name for name in columns if name not in names]
    if missing:
        raise UserError(f"{path} has the header {names}, without {', '.join(missing)}; is it the published file?")
    place = {name: names.index(name) for name in columns}
    for number, row in enumerate(rows, 2 if header else 1):
        if row in ([], [""]):
            continue
        if len(row) <= max(place.values()):
            if leave_out_short:
                continue
            raise UserError(
                f"Row {number} of {path} has {len(row)} columns, {max(place.values()) + 1} are needed; copy it again."
            )
        yield {name: row[i] for name, i in place.items()}


def has_header(path: epath.Path, columns: Sequence[str], delimiter: str = "\t") -> bool:
    """Whether `path` exists and its first line names `columns`."""
    if not path.exists():
        return False
    with path.open("r", encoding="utf-8-sig") as file:
        return set(columns) <= set(file.readline().rstrip("\r\n").split(delimiter))


def json_lines(path: epath.Path) -> Iterator[dict[str, Any]]:
    """Yields one JSON object per line; the file may be compressed (`.gz`)."""
    for number, line in enumerate(io.StringIO(text(path), newline="\n"), 1):
        if line.strip():
            yield _parsed(line, f"Line {number} of {path}")


def json_file(path: epath.Path, *keys: str) -> dict[str, Any]:
    """Reads a JSON object that must have `keys`."""
    value = json_value(path)
    missing = [key for key in keys if not isinstance(value, dict) or key not in value]
    if missing:
        raise UserError(f"{path} has no {', '.join(missing)}; is it the published file?")
    return value


def json_value(path: epath.Path) -> Any:
    """Reads any JSON."""
    return _parsed(text(path), str(path))


def fields(row: Mapping[str, Any], names: Sequence[str], path: epath.Path) -> list[Any]:
    """Returns the values of `names` in a row.

    Raises:
      UserError: if one is missing.
    """
    missing = [name for name in names if name not in row]
    if missing:
        raise UserError(f"An entry of {path} has no {', '.join(missing)}; is it the published file?")
    return [row[name] for name in names]


def first_existing(folder: epath.Path, *names: str) -> epath.Path:
    """Returns the first of several names of a file that exists.

    Raises:
      UserError: if none exists.
    """
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise UserError(f"There is no {folder / names[0]}; DATA_DIR must hold the data set as it was published.")


def archive(path: epath.Path) -> dict[str, bytes]:
    """Reads all files of a `.zip` or `.tar` that fits in memory: name without folders -> bytes.

    Raises:
      UserError: if it is missing or damaged.
    """
    content = io.BytesIO(read(path))
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(content) as file:
                return {name.rpartition("/")[2]: file.read(name) for name in file.namelist() if not name.endswith("/")}
        with tarfile.open(fileobj=content) as file:
            members = ((member.name, file.extractfile(member)) for member in file.getmembers() if member.isfile())
            return {name.rpartition("/")[2]: member.read() for name, member in members if member is not None}
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as e:
        raise UserError(f"{path} is damaged ({e}); copy it again.") from e


def _parsed(content: str, name: str) -> Any:
    try:
        return json.loads(content)
    except json.JSONDecodeError as e:
        raise UserError(f"{name} is not JSON ({e}); copy it again.") from e
