"""Rows to predict for, and their predictions written as they are made: killed at any moment, the same command goes on.

OUTPUT          rows with a column `prediction`: .jsonl or .csv
.OUTPUT.json    while it is being made: what makes it, how many rows and bytes are whole
"""

import csv
import dataclasses
import io
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from etils import epath

from adalink_jax.data import text_of
from adalink_jax.data.images import ImageShape, decode_image, load_image
from adalink_jax.data.user_files import file_splits, table_files
from adalink_jax.data.user_files.image_files import Pictures, RowPicture
from adalink_jax.data.user_files.text_templates import Template
from adalink_jax.errors import UserError
from adalink_jax.files.whole_file import read_json, write_json

PREDICTION, ADAPTER, INPUTS, TARGET = "prediction", "adapter", "inputs", "target"
TEXT = ".txt"
KINDS = (".jsonl", ".csv")


@dataclasses.dataclass(frozen=True)
class Ask:
    """One row.

    Attributes:
      cells: as they are written again.
      text: what the model is asked.
      picture: reads its picture as the model takes it; None where it has none.
      adapter: the name in its column `adapter`, "" for the plain base; None where there is no such column.
    """

    cells: dict
    text: str
    picture: Callable[[ImageShape], np.ndarray] | None = None
    adapter: str | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """What is asked.

    Attributes:
      columns: of what is written, but for the prediction.
      count: of rows.
      asks: begins a pass over them.
    """

    columns: tuple[str, ...]
    count: int
    asks: Callable[[], Iterator[Ask]]


def of_file(path: str, given: Mapping[str, str | None], run: Mapping[str, object], wants_images: bool) -> Source:
    """The rows of a table, a folder of images, or the lines of a text.

    Args:
      path: .csv, .tsv, .jsonl, .parquet (see `tables`), a folder of images, or .txt with an input a line.
      given: `inputs`, `image`, `images`: templates and where pictures lie, as typed; None for the run's, or else the columns
        `inputs` and `image`, and the folder of the table.
      run: how a run's own rows were written, see `Opened.rows`.
      wants_images: whether the model takes images.

    Raises:
      UserError: for a file or a row that cannot be used, before anything is predicted.
    """
    table = _opened(path, run)
    if PREDICTION in table.columns:
        raise UserError(f"{path} has a column `{PREDICTION}` already; rename it.")
    written = _template(INPUTS, given, run, path, table)
    picture = pictures = None
    if wants_images:
        pictures = Pictures(given["images"] or run.get("images") or file_splits.picture_root(None, path))
        picture = RowPicture(_template(table_files.IMAGE, given, run, path, table), pictures)

    def asks() -> Iterator[Ask]:
        for row in table.rows():
            if isinstance(row, table_files.BadRow):
                raise UserError(f"Line {row.line} of {path} cannot be read: {row.reason}.")
            try:
                text, found = written.text(row.cells), {} if picture is None else picture(row.cells)
            except TypeError as e:
                raise UserError(f"Line {row.line} of {path}: {e}.") from e
            lacks = INPUTS if not text else table_files.IMAGE if picture is not None and not found else None
            if lacks:
                raise UserError(
                    f"{path} needs a column `{lacks}`, filled in every row (line {row.line}); it has {', '.join(table.columns)}."
                )
            if isinstance(found, str):
                raise UserError(f"Line {row.line} of {path}: {found}.")
            shown = {name: value for name, value in row.cells.items() if not _is_bytes(value)}
            adapter = str(row.cells.get(ADAPTER) or "") if ADAPTER in table.columns else None
            yield Ask(shown, text, _reader(found, pictures, f"The picture in line {row.line} of {path}"), adapter)

    count, shown = 0, set()
    for ask in asks():
        count += 1
        shown.update(ask.cells)
    if not count:
        raise UserError(f"{path} has no rows below its header.")
    return Source(tuple(name for name in table.columns if name in shown), count, asks)


def of_task(task, split: str) -> Source:
    """The examples of a split of a task, in their order; each row has its input, and its target for comparison."""

    def asks() -> Iterator[Ask]:
        for number, example in enumerate(task.examples(split), 1):
            text = text_of(example["inputs_pretokenized"])
            found = {name: example[name] for name in ("image", "image_file") if name in example}
            if "image_file" in found:
                found["image_file"] = text_of(found["image_file"])
            picture = _reader(found, None, f"The picture of example {number} of {task.name}")
            yield Ask({INPUTS: text, TARGET: task.decode(example["targets"])}, text, picture)

    return Source((INPUTS, TARGET), sum(1 for _ in task.examples(split)), asks)


def _opened(path: str, run: Mapping) -> table_files.Table:
    if path.lower().endswith(TEXT):
        return _text(path, run)
    own = table_files.suffix_of(path) in table_files.DELIMITERS  # JSONL, Parquet and folders name their columns
    return table_files.open_table(path, *((run.get("columns"), run.get("delimiter")) if own else ()))


def _text(path: str, run: Mapping) -> table_files.Table:
    """A file with an input a line: the one column that a run's template names."""
    if not epath.Path(path).exists():
        raise UserError(f"There is no {path}.")
    columns = Template("INPUTS", run.get(INPUTS, "{inputs}")).columns
    if len(columns) != 1:
        raise UserError(f"The run's inputs are made of {len(columns)} columns, and {path} has lines; give it a table.")

    def rows() -> Iterator[table_files.Row | table_files.BadRow]:
        for number, line in enumerate(table_files.lines(epath.Path(path)), 1):
            if line.strip():
                reason = table_files.unclean([line])
                yield table_files.BadRow(number, reason) if reason else table_files.Row(number, {columns[0]: line.strip()})

    return table_files.Table(path, columns, rows)


def _template(name: str, given: Mapping, run: Mapping, path: str, table: table_files.Table) -> Template:
    if given[name] is not None:
        return Template(f"--{name}", given[name], table.columns)
    own = run.get(name)
    if own is not None and set(Template(name, own).columns) <= set(table.columns):
        return Template(name, own, table.columns)
    if name in table.columns:
        return Template(name, f"{{{name}}}", table.columns)
    has = f"it has {', '.join(table.columns)}"
    if own is not None:
        raise UserError(f"The run's rows were written by {own!r}, and {path} has other columns ({has}); give --{name}.")
    raise UserError(f"{path} needs a column `{name}`, filled in every row; {has}.")


def _reader(found: Mapping, pictures: Pictures | None, name: str) -> Callable[[ImageShape], np.ndarray] | None:
    """Reads a picture when it is wanted."""

    def read(shape: ImageShape) -> np.ndarray | bytes:
        image = pictures.example(found["image_name"]) if "image_name" in found else found
        if "image_file" in image:
            return load_image(image["image_file"], shape)
        encoded = image["image"]
        return decode_image(encoded, shape, name) if isinstance(encoded, bytes) and encoded else encoded

    return read if found else None


def _is_bytes(value) -> bool:
    return isinstance(value, bytes) or (isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes))


# --- what is written ---


class Output:
    """A file of predictions, appended to. Nothing is written before the first of them."""

    def __init__(self, path: str, columns: Sequence[str], identity: Mapping):
        """Args:
          path: `.jsonl` or `.csv`.
          columns: of the rows.
          identity: what makes it, as JSON; a file that something else was making is refused.

        Raises:
          UserError: for another ending, a folder that is not there, a file that is whole or another's.
        """
        self.path, self._columns = pathlib.Path(path), list(columns)
        self._state = self.path.with_name(f".{self.path.name}.json")
        if self.path.suffix not in KINDS:
            raise UserError(f"{path} must end in {' or '.join(KINDS)}.")
        if not self.path.parent.is_dir():
            raise UserError(f"{path} lies in no folder; make it first.")
        self._identity = json.loads(json.dumps(identity))
        known = read_json(self._state)
        if self.path.exists() and known is None:
            raise UserError(f"{path} is there already; name another file.")
        if known is not None and self.path.exists() and known["identity"] != self._identity:
            raise UserError(
                f"{path} was begun by another command, or of other files; finish it by that one, or delete it and {self._state}."
            )
        self.rows, self._bytes = (known["rows"], known["bytes"]) if known and self.path.exists() else (0, 0)

    def append(self, rows: Sequence[Mapping]) -> None:
        """Writes whole rows."""
        text = io.StringIO(newline="")
        if self.path.suffix == ".csv":
            table = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
            if not self.rows:
                table.writeheader()
            table.writerows(rows)
        else:
            for row in rows:
                text.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
        if not self.rows:
            self._note()
        with self.path.open("r+b" if self.path.exists() else "wb") as file:
            file.truncate(self._bytes)  # a row that was being written
            file.seek(self._bytes)
            file.write(text.getvalue().encode())
            self._bytes = file.tell()
        self.rows += len(rows)
        self._note()

    def finish(self) -> None:
        """The file is whole."""
        self._state.unlink(missing_ok=True)

    def _note(self) -> None:
        write_json(self._state, {"identity": self._identity, "rows": self.rows, "bytes": self._bytes})


def marks(*paths: str) -> list:
    """By which files and folders are known again: sizes and times of what is in them."""
    found = []
    for path in map(pathlib.Path, paths):
        files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.exists() else []
        found.append(
            [str(path), *([str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in itertools.islice(files, 1000))]
        )
    return found
