"""Rows to predict for, and their predictions written as they are made: killed at any moment, the same command goes on.

OUTPUT          rows with a column `prediction`: .jsonl or .csv
.OUTPUT.json    while it is being made: what makes it, how many rows and bytes are whole
"""

import csv
import dataclasses
import io
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from adalink_jax.data import text_of
from adalink_jax.data.files import reading, tables
from adalink_jax.data.files.pictures import Pictures
from adalink_jax.data.files.templates import Template
from adalink_jax.errors import UserError
from adalink_jax.training.whole_file import read_json, write_json

PREDICTION, ADAPTER, INPUTS = "prediction", "adapter", "inputs"
TEXT = ".txt"
KINDS = (".jsonl", ".csv")


@dataclasses.dataclass(frozen=True)
class Ask:
    """One row.

    Attributes:
      row: its cells, as they are written again.
      text: what the model is asked.
      image: a path, bytes, or an array; None where there is none.
      adapter: the name in its column `adapter`; None where there is no such column, "" for the plain base.
    """

    row: dict
    text: str
    image: object = None
    adapter: str | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """What is asked.

    Attributes:
      count: of rows.
      asks: begins a pass over them.
    """

    count: int
    asks: Callable[[], Iterator[Ask]]


def of_file(
    path: str,
    inputs: str | None,
    image: str | None,
    images: str | None,
    templates: Mapping[str, str],
    wants_images: bool,
) -> Source:
    """The rows of a table, a folder of images, or the lines of a text.

    Args:
      path: .csv, .tsv, .jsonl, .parquet (see `tables`), a folder of images, or .txt with an input a line.
      inputs, image: templates; None for those of `templates` whose columns are there, or else the columns `inputs` and `image`.
      images: where pictures lie; None for the folder of the table.
      templates: by which a run's own rows were written.
      wants_images: whether the model takes images.

    Raises:
      UserError: for a file or a row that cannot be used, before anything is predicted.
    """
    table = _text(path) if path.lower().endswith(TEXT) else tables.open_table(path)
    if PREDICTION in table.columns:
        raise UserError(f"{path} has a column `{PREDICTION}` already; rename it.")
    written = Template("--inputs", _template(inputs, templates, INPUTS, path, table), table.columns)
    pictures = named = None
    if wants_images and (image or templates.get(tables.IMAGE) or tables.IMAGE in table.columns or not templates):
        named = Template("--image", _template(image, templates, tables.IMAGE, path, table), table.columns)
        folder = path if pathlib.Path(path).is_dir() else reading.folder_of(path)
        pictures = Pictures(images or folder)

    def asks() -> Iterator[Ask]:
        for found in table.rows():
            if isinstance(found, tables.Bad):
                raise UserError(f"Line {found.line} of {path} cannot be read: {found.reason}.")
            line, row = found
            try:
                text, picture = written.text(row), _picture(row, named, pictures) if pictures else None
            except TypeError as e:
                raise UserError(f"Line {line} of {path}: {e}.") from e
            lacks = INPUTS if not text else tables.IMAGE if pictures and picture is None else None
            if lacks:
                raise UserError(
                    f"{path} needs a column `{lacks}`, filled in every row (line {line}); it has {', '.join(table.columns)}."
                )
            if isinstance(picture, str):
                raise UserError(f"Line {line} of {path}: {picture}.")
            shown = {name: value for name, value in row.items() if not _is_bytes(value)}
            adapter = row.get(ADAPTER) if ADAPTER in table.columns else None
            yield Ask(shown, text, None if picture is None else next(iter(picture.values())), adapter)

    count = sum(1 for _ in asks())
    if not count:
        raise UserError(f"{path} has no rows below its header.")
    return Source(count, asks)


def of_task(task, split: str) -> Source:
    """The examples of a split of a task, in their order; each row has its input, and its target for comparison."""
    def asks() -> Iterator[Ask]:
        for example in task.examples(split):
            row = {INPUTS: text_of(example["inputs_pretokenized"]), "target": task.decode(example["targets"])}
            image = example.get("image_file", example.get("image"))
            yield Ask(row, row[INPUTS], image)

    return Source(sum(1 for _ in task.examples(split)), asks)


def _text(path: str) -> tables.Table:
    from etils import epath

    if not epath.Path(path).exists():
        raise UserError(f"There is no {path}.")

    def rows():
        for number, line in enumerate(tables.lines(epath.Path(path)), 1):
            if line.strip():
                yield number, {INPUTS: line.strip()}

    return tables.Table(path, (INPUTS,), rows)


def _template(given: str | None, templates: Mapping[str, str], name: str, path: str, table: tables.Table) -> str:
    if given is not None:
        return given
    own = templates.get(name)
    if own is not None:
        try:
            Template(name, own, table.columns)
            return own
        except UserError:
            if name not in table.columns:
                raise UserError(
                    f"The run's rows were written by {own!r}, and {path} has the columns {', '.join(table.columns)}; give --{name}."
                ) from None
    if name not in table.columns:
        raise UserError(f"{path} needs a column `{name}`, filled in every row; it has {', '.join(table.columns)}.")
    return f"{{{name}}}"


def _picture(row: Mapping, named: Template, pictures: Pictures) -> dict | str | None:
    """`image` or `image_file`; in words why there is none; None where its cell is empty."""
    value = row.get(named.columns[0]) if len(named.columns) == 1 else None
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return {"image": value}
    name = named.text(row if not isinstance(value, str) else {named.columns[0]: value})
    if not name:
        return None
    return pictures.problem(name) or pictures.example(name)


def _is_bytes(value) -> bool:
    return isinstance(value, bytes) or (isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes))


# --- what is written ---


class Output:
    """A file of predictions, appended to; use it as a context."""

    def __init__(self, path: str, identity: Mapping):
        """Args:
          path: `.jsonl` or `.csv`.
          identity: what makes it, as JSON; a file that something else was making is refused.

        Raises:
          UserError: for another ending, a folder that is not there, a file that is whole or another's.
        """
        self.path = pathlib.Path(path)
        self._state = self.path.with_name(f".{self.path.name}.json")
        if self.path.suffix not in KINDS:
            raise UserError(f"{path} must end in {' or '.join(KINDS)}.")
        if not self.path.parent.is_dir():
            raise UserError(f"{path} lies in no folder; make it first.")
        self._identity = json.loads(json.dumps(identity))
        known = read_json(self._state)
        if self.path.exists() and known is None:
            raise UserError(f"{path} is there already; name another file.")
        if known is not None and known["identity"] != self._identity:
            raise UserError(
                f"{path} was begun by another command; finish it by that one, or delete it and {self._state}."
            )
        self.rows, self._bytes = (known["rows"], known["bytes"]) if known and self.path.exists() else (0, 0)

    def __enter__(self):
        self._file = self.path.open("r+b" if self.path.exists() else "w+b")
        self._file.truncate(self._bytes)  # a row that was being written
        self._file.seek(self._bytes)
        self._note()
        return self

    def __exit__(self, *_):
        self._file.close()

    def append(self, rows: Sequence[Mapping]) -> None:
        """Writes whole rows, all with the same names."""
        text = io.StringIO(newline="")
        if self.path.suffix == ".csv":
            table = csv.DictWriter(text, [*rows[0]], lineterminator="\n")
            if not self.rows:
                table.writeheader()
            table.writerows(rows)
        else:
            for row in rows:
                text.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
        self._file.write(text.getvalue().encode())
        self._file.flush()
        self.rows, self._bytes = self.rows + len(rows), self._file.tell()
        self._note()

    def finish(self) -> None:
        """The file is whole."""
        self._state.unlink(missing_ok=True)

    def _note(self) -> None:
        write_json(self._state, {"identity": self._identity, "rows": self.rows, "bytes": self._bytes})
