"""Reads the rows to predict for: of a table, a folder, a text file, or a task."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from adalink_jax.data import text_of
from adalink_jax.data.images import ImageShape, Preparing, decode_image, load_image
from adalink_jax.data.task_protocol import Task
from adalink_jax.data.user_files import table_files, table_rows, table_search
from adalink_jax.data.user_files.image_files import Pictures, RowPicture
from adalink_jax.data.user_files.text_templates import Template, cell_text, is_missing
from adalink_jax.errors import UserError
from adalink_jax.files.places import path_of, regular_file

PREDICTION, ADAPTER, INPUTS, TARGET = "prediction", "adapter", "inputs", "target"
TEXT, FILE_NAME = ".txt", "file_name"


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
      table: the table `metadata` of a folder of images, which the rows are read from; None for others.
    """

    columns: tuple[str, ...]
    count: int
    asks: Callable[[], Iterator[Ask]]
    note: str = ""
    table: str | None = None


def of_file(
    path: str,
    options: Mapping[str, str | None],
    run: Mapping[str, Any],
    wants_images: bool,
    needs_images: bool = True,
) -> Source:
    """The rows of a table, a folder that `save_to_disk` wrote or of images, or the lines of a text file.

    Args:
      path: a table (see `table_files`), a folder of images, by class or not or with a table `metadata`, or .txt with one input per line.
      options: `inputs` and `image`, templates, `images`, the folder or archive of the images, and `encoding` of the file, as typed. None for those of the run, or
        without a run for the columns `inputs` and `image`, and the table's folder.
      run: how the run's own rows were read and formatted, see `opening.Opened.rows`.
      wants_images: whether the model takes images.
      needs_images: whether it needs them: if not, rows have images where a template or a column names them.

    Raises:
      UserError: for a file or a row that cannot be used; every row is checked before anything is predicted.
    """
    metadata = table_search.metadata_in(path_of(path)) if path_of(path).is_dir() else None
    folder, path = path, metadata or path
    table, note = _opened(path, run, options.get("encoding"))
    if PREDICTION in table.columns:
        raise UserError(f"{path} has a column `{PREDICTION}` already; rename it.")
    template = _template(INPUTS, options, run, path, table)
    used, picture, pictures = {"input": template}, None, None
    named = options["image"] or run.get("image") or _column(table_files.IMAGE, path, table)
    if wants_images and (needs_images or named):
        pictures = Pictures(_picture_root(folder, options["images"], run.get("images")))
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
    return Source(tuple(shown), count, asks, note, metadata)


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
        if saved := table_search.saved_tables(path_of(path)):
            return table_files.joined(path, [table_files.open_table(file) for file in saved]), ""
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
    if (column := _column(name, path, table)) is not None:
        return Template(name, f"{{{column}}}", table)
    has = f"it has {', '.join(table.columns)}"
    if run_template is not None:
        raise UserError(
            f"The run formats its rows with {run_template!r}, but {path} has other columns ({has}); give --{name}."
        )
    raise UserError(f"{path} needs a column `{name}`, filled in every row; {has}.")


def _column(name: str, path: str, table: table_files.Table) -> str | None:
    """The column of inputs or images; None without one. Hugging Face's imagefolder calls that of images otherwise."""
    names = (name, FILE_NAME) if name == table_files.IMAGE and table_search.is_metadata(path) else (name,)
    return next((column for column in names if column in table.columns), None)


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
