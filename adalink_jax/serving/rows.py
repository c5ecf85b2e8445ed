"""Reads the rows to predict for, and writes each prediction as it is made; rerunning the command after a kill resumes it.

OUTPUT          rows with a column `prediction`: .jsonl or .csv
.OUTPUT.json    until OUTPUT is complete: which command writes it, and how many of its rows and bytes are complete
"""

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import pydantic
from etils import epath

from adalink_jax import preemption
from adalink_jax.data import text_of
from adalink_jax.data.images import ImageShape, Preparing, decode_image, load_image
from adalink_jax.data.task_protocol import Task
from adalink_jax.data.user_files import table_files, table_rows
from adalink_jax.data.user_files.image_files import Pictures, RowPicture
from adalink_jax.data.user_files.text_templates import Template, cell_text, is_missing
from adalink_jax.errors import UserError
from adalink_jax.files import locks
from adalink_jax.files.places import path_of, regular_file
from adalink_jax.files.typed_json import Form, read_state
from adalink_jax.files.whole_file import write_json

PREDICTION, ADAPTER, INPUTS, TARGET = "prediction", "adapter", "inputs", "target"
TEXT = ".txt"
KINDS = (".jsonl", ".csv")


# For the shape of the model's images and their preparation; b"" for a missing image.
ReadImage = Callable[[ImageShape, Preparing], np.ndarray | bytes]


@dataclasses.dataclass(frozen=True)
class Ask:
    """One row to predict for.

    Attributes:
      cells: the row, which is written to the output.
      text: the model's input.
      picture: reads the row's image; None without one.
      adapter: the name in the row's column `adapter`, "" for the base model; None if there is no such column.
    """

    cells: dict[str, Any]
    text: str
    picture: ReadImage | None = None
    adapter: str | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """The rows to predict for.

    Attributes:
      columns: of the output, without the prediction.
      count: number of rows.
      asks: starts a pass over the rows.
      note: a remark on the rows, for the user; or "".
    """

    columns: tuple[str, ...]
    count: int
    asks: Callable[[], Iterator[Ask]]
    note: str = ""


def of_file(
    path: str,
    options: Mapping[str, str | None],
    run: Mapping[str, Any],
    wants_images: bool,
    needs_images: bool = True,
) -> Source:
    """The rows of a table, a folder of images, or the lines of a text file.

    Args:
      path: a table (see `table_files`), a folder of images, by class or not, or .txt with one input per line.
      options: `inputs` and `image`, templates, `images`, the folder or archive of the images, and `encoding` of the file, as typed. None for those of the run, or
        without a run for the columns `inputs` and `image`, and the table's folder.
      run: how the run's own rows were read and formatted, see `opening.Opened.rows`.
      wants_images: whether the model takes images.
      needs_images: whether it needs them: if not, rows have images where a template or a column `image` names them.

    Raises:
      UserError: for a file or a row that cannot be used; every row is checked before anything is predicted.
    """
    table, note = _opened(path, run, options.get("encoding"))
    if PREDICTION in table.columns:
        raise UserError(f"{path} has a column `{PREDICTION}` already; rename it.")
    template = _template(INPUTS, options, run, path, table)
    used, picture, pictures = {"input": template}, None, None
    named = options["image"] or run.get("image") or table_files.IMAGE in table.columns
    if wants_images and (needs_images or named):
        pictures = Pictures(_picture_root(path, options["images"], run.get("images")))
        used["picture"] = _template(table_files.IMAGE, options, run, path, table)
        picture = RowPicture(used["picture"], pictures)

    def asks() -> Iterator[Ask]:
        for row in table.rows():
            if isinstance(row, table_files.BadRow):
                raise UserError(f"Line {row.line} of {path} cannot be read: {row.reason}.")
            try:
                text, image = template.text(row.cells), {} if picture is None else picture(row.cells)
            except TypeError as e:
                raise UserError(f"Line {row.line} of {path}: {e}.") from e
            missing = "input" if not text else "picture" if picture is not None and not image else None
            if missing is not None:
                names = " and ".join(f"'{{{name}}}'" for name in used[missing].columns)
                raise UserError(
                    f"Line {row.line} of {path} has no {missing} ({names} is empty there); fill it, or leave out the row."
                )
            if isinstance(image, str):  # why it cannot be used
                raise UserError(f"Line {row.line} of {path}: {image}.")
            shown = {
                name: None if is_missing(value) else value for name, value in row.cells.items() if not _is_bytes(value)
            }
            adapter = cell_text(table_rows.cell(row.cells, ADAPTER)) if ADAPTER in table.columns else None
            yield Ask(shown, text, _reader(image, pictures, f"The picture in line {row.line} of {path}"), adapter)

    count, shown = 0, {}
    for ask in asks():
        count += 1
        shown |= dict.fromkeys(ask.cells)
    if not count:
        raise UserError(f"{path} has no rows below its header.")
    return Source(tuple(shown), count, asks, note)


def of_task(task: Task, split: str) -> Source:
    """The examples of a split of a task, in order; each row has the input, and the target for comparison."""

    def asks() -> Iterator[Ask]:
        for number, example in enumerate(task.examples(split), 1):
            text = text_of(example["inputs_pretokenized"])
            image = {name: example[name] for name in ("image", "image_file") if name in example}
            if "image_file" in image:
                image["image_file"] = text_of(image["image_file"])
            picture = _reader(image, None, f"The picture of example {number} of {task.name}")
            yield Ask({INPUTS: text, TARGET: task.decode(example["targets"])}, text, picture)

    return Source((INPUTS, TARGET), sum(1 for _ in task.examples(split)), asks)


def _opened(path: str, run: Mapping, encoding: str | None) -> tuple[table_files.Table, str]:
    """The rows, and a remark on them for the user."""
    if path_of(path).is_dir() and encoding is None:
        if (pictures := table_files.new_pictures(path_of(path))) is None:
            return table_files.open_table(path), ""
        return pictures[0], f"{pictures[1]:,} files in {path} are not pictures, and left out." if pictures[1] else ""
    if path.lower().endswith(TEXT):
        return _text(path, run, encoding), _empty_lines(path, encoding)
    if table_files.suffix_of(path) in table_files.DELIMITERS:
        form = (run.get("columns"), run.get("delimiter"), run.get("quoted"))
        return table_files.open_table(path, *form, encoding), ""
    return table_files.open_table(path, encoding=encoding), ""  # the others name their columns


def _picture_root(path: str, typed: str | None, of_run: str | None) -> str:
    """The folder or archive of the pictures; of a folder of pictures, itself."""
    if not path_of(path).is_dir():
        return typed or of_run or table_files.picture_root(None, path)
    if typed is not None:
        raise UserError(f"{path} is a folder of pictures itself; leave out --images.")
    return path


def _text(path: str, run: Mapping, encoding: str | None) -> table_files.Table:
    """A file with one input per line, as a table with the one column that the run's template names."""
    regular_file(path)
    columns = Template("INPUTS", run.get(INPUTS, "{inputs}")).columns
    if len(columns) != 1:
        raise UserError(f"The run's INPUTS uses {len(columns)} columns, but {path} has lines of text; give a table.")

    def rows() -> Iterator[table_files.Row | table_files.BadRow]:
        for number, line in enumerate(table_rows.lines(path_of(path), encoding), 1):
            if line.strip():
                reason = table_rows.unclean([line])
                yield (
                    table_files.BadRow(number, reason)
                    if reason
                    else table_files.Row(number, {columns[0]: line.strip()})
                )

    return table_files.Table(path, columns, rows)


def _empty_lines(path: str, encoding: str | None) -> str:
    """What `infer` reports of a text file's empty lines; or ""."""
    empty = [not line.strip() for line in table_rows.lines(path_of(path), encoding)]
    return f"{sum(empty):,} of the {len(empty):,} lines of {path} are empty, and left out." if any(empty) else ""


def _template(name: str, options: Mapping, run: Mapping, path: str, table: table_files.Table) -> Template:
    if options[name] is not None:
        return Template(f"--{name}", options[name], table)
    run_template = run.get(name)
    if run_template is not None and set(Template(name, run_template).columns) <= set(table.columns):
        return Template(name, run_template, table)
    if name in table.columns:
        return Template(name, f"{{{name}}}", table)
    has = f"it has {', '.join(table.columns)}"
    if run_template is not None:
        raise UserError(
            f"The run formats its rows with {run_template!r}, but {path} has other columns ({has}); give --{name}."
        )
    raise UserError(f"{path} needs a column `{name}`, filled in every row; {has}.")


def _reader(image: Mapping[str, Any], pictures: Pictures | None, name: str) -> ReadImage | None:
    """A function that reads an image when it is needed."""

    def read(shape: ImageShape, preparation: Preparing) -> np.ndarray | bytes:
        example = pictures.example(image["image_name"]) if pictures and "image_name" in image else image
        if "image_file" in example:
            return load_image(example["image_file"], shape, preparation)
        encoded = example["image"]
        is_file = isinstance(encoded, bytes) and encoded
        return decode_image(encoded, shape, name, preparation) if is_file else encoded

    return read if image else None


def _is_bytes(value: object) -> bool:
    return isinstance(value, bytes) or (isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes))


# --- output ---


class _Begun(Form):
    """What is recorded of an incomplete file."""

    identity: dict[str, Any]
    rows: Annotated[int, pydantic.Field(ge=0)]
    bytes: Annotated[int, pydantic.Field(ge=0)]


class Output:
    """A file of predictions, to which rows are appended. It is created with the first row."""

    def __init__(self, path: str, columns: Sequence[str], identity: Mapping[str, Any]):
        """Args:
          path: `.jsonl` or `.csv`.
          columns: the columns of the rows.
          identity: what identifies the command, as JSON; an incomplete file of another command is refused.

        Raises:
          UserError: for another suffix, a missing folder, and a file that is complete or of another command.
          Taken: if another process writes it.
        """
        self.path, self._columns = path_of(path), list(columns)
        self._state = _state_of(self.path)
        if self.path.suffix not in KINDS:
            raise UserError(f"{path} must end in {' or '.join(KINDS)}.")
        if not self.path.parent.is_dir():
            raise UserError(f"The parent folder of {path} does not exist; create it first.")
        with contextlib.ExitStack() as lock:
            lock.enter_context(locks.hold_file(self.path))
            self._begin(path, identity)
            self._lock = lock.pop_all()

    def _begin(self, path: str, identity: Mapping[str, Any]) -> None:
        self._identity = json.loads(json.dumps(identity))
        state = read_state(self._state, _Begun)
        if self.path.exists() and state is None:
            raise UserError(f"{path} exists already; name another file.")
        if state is not None and self.path.exists() and state["identity"] != self._identity:
            raise UserError(
                f"{path} was begun by another command, or from other files; rerun that command, or delete {path} and {self._state}."
            )
        self.rows, self._bytes = (state["rows"], state["bytes"]) if state and self.path.exists() else (0, 0)
        if self.rows:
            preemption.keeps(f"the {self.rows:,} predictions in {self.path} are kept")

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends rows."""
        text = io.StringIO(newline="")
        if self.path.suffix == ".csv":
            table = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
            if not self.rows:
                table.writeheader()
            table.writerows(rows)
        else:
            text.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        if not self.rows:
            self._note()
        with open(self.path, "r+b" if self.path.exists() else "wb") as file:
            file.truncate(self._bytes)  # drops a row that was cut off
            file.seek(self._bytes)
            file.write(text.getvalue().encode())
            self._bytes = file.tell()
        self.rows += len(rows)
        self._note()
        preemption.keeps(f"the {self.rows:,} predictions in {self.path} are kept")

    def finish(self, keep: bool = True) -> None:
        """Marks the file as complete; or removes it, if its rows are in another file by now."""
        if not keep:
            self.path.unlink(missing_ok=True)
        self._state.unlink(missing_ok=True)
        self._lock.close()

    def _note(self) -> None:
        write_json(self._state, {"identity": self._identity, "rows": self.rows, "bytes": self._bytes})


def is_unfinished(path: str) -> bool:
    """Whether a process that writes the file `path` has not finished it."""
    return _state_of(path_of(path)).exists()


def _state_of(path: epath.Path) -> epath.Path:
    return path.with_name(f".{path.name}.json")


def marks(*paths: str) -> list[list[Any]]:
    """Names, sizes and modification times of files, and of the files in folders: equal if nothing changed."""
    out = []
    for path in map(pathlib.Path, paths):
        files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.exists() else []
        out.append(
            [str(path), *([str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in itertools.islice(files, 1000))]
        )
    return out
