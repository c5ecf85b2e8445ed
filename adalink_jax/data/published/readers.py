"""Published files -> rows, dicts of text; what is missing or of another form is told in one sentence."""

import csv
import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence

from etils import epath

from adalink_jax.errors import UserError


def read(path: epath.Path) -> bytes:
    """The bytes of a file; of a `.gz`, what is packed in it.

    Raises:
      UserError: if it is not there, or damaged.
    """
    try:
        packed = path.read_bytes()
        return gzip.decompress(packed) if path.suffix == ".gz" else packed
    except FileNotFoundError as e:
        raise UserError(f"There is no {path}; DATA_DIR must hold the data set as it was published.") from e
    except (OSError, EOFError) as e:
        raise UserError(f"{path} is damaged or cannot be read ({e}); copy it again.") from e


def text(path: epath.Path) -> str:
    """The same as UTF-8."""
    try:
        return read(path).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is no UTF-8 ({e}); copy it again.") from e


def table(
    path: epath.Path,
    columns: Sequence[str],
    header: bool = True,
    delimiter: str = "\t",
    quoted: bool = False,
    leave_out_short: bool = False,
) -> Iterator[dict[str, str]]:
    """The rows of a table.

    Args:
      path: the file; may be packed (`.gz`).
      columns: those that its header must have; without a header, the names of its first columns.
      header: whether its first line names the columns.
      delimiter: between columns.
      quoted: whether quotation marks enclose cells; else they are text.
      leave_out_short: leave out rows that are too short, for files that were published with such.

    Raises:
      UserError: for another header, and a row that is too short, by its number.
    """
    lines = io.StringIO(text(path), newline="" if quoted else "\n")
    rows = csv.reader(lines, delimiter=delimiter) if quoted else (x.rstrip("\r\n").split(delimiter) for x in lines)
    found = next(rows, []) if header else list(columns)
    lacking = [name for name in columns if name not in found]
    if lacking:
        raise UserError(f"{path} has the header {found}, without {', '.join(lacking)}; is it the published file?")
    place = {name: found.index(name) for name in columns}
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
    """Whether `path` is there and its first line names `columns`."""
    if not path.exists():
        return False
    with path.open("r", encoding="utf-8-sig") as file:
        return set(columns) <= set(file.readline().rstrip("\r\n").split(delimiter))


def json_lines(path: epath.Path) -> Iterator[dict]:
    """One JSON object a line; may be packed (`.gz`)."""
    for number, line in enumerate(io.StringIO(text(path), newline="\n"), 1):
        if line.strip():
            yield _parsed(line, f"Line {number} of {path}")


def json_file(path: epath.Path, *keys: str) -> dict:
    """A JSON object that has `keys`."""
    found = _parsed(text(path), str(path))
    lacking = [key for key in keys if not isinstance(found, dict) or key not in found]
    if lacking:
        raise UserError(f"{path} has no {', '.join(lacking)}; is it the published file?")
    return found


def json_value(path: epath.Path):
    """Any JSON."""
    return _parsed(text(path), str(path))


def fields(row: Mapping, names: Sequence[str], path: epath.Path) -> list:
    """`row`'s values of `names`.

    Raises:
      UserError: if one is not there.
    """
    lacking = [name for name in names if name not in row]
    if lacking:
        raise UserError(f"An entry of {path} has no {', '.join(lacking)}; is it the published file?")
    return [row[name] for name in names]


def first_there(folder: epath.Path, *names: str) -> epath.Path:
    """The first of several names of a file that is there.

    Raises:
      UserError: if none is.
    """
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise UserError(f"There is no {folder / names[0]}; DATA_DIR must hold the data set as it was published.")


def archive(path: epath.Path) -> dict[str, bytes]:
    """File name without folders -> bytes, of all in a `.zip` or `.tar`; for archives that fit in memory.

    Raises:
      UserError: if it is not there, or damaged.
    """
    packed = io.BytesIO(read(path))
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(packed) as file:
                return {name.rpartition("/")[2]: file.read(name) for name in file.namelist() if not name.endswith("/")}
        with tarfile.open(fileobj=packed) as file:
            members = [member for member in file.getmembers() if member.isfile()]
            return {member.name.rpartition("/")[2]: file.extractfile(member).read() for member in members}
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as e:
        raise UserError(f"{path} is damaged ({e}); copy it again.") from e


def _parsed(found: str, name: str):
    try:
        return json.loads(found)
    except json.JSONDecodeError as e:
        raise UserError(f"{name} is no JSON ({e}); copy it again.") from e
