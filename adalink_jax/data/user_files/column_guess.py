"""Guesses what the columns of a table are for, from their names and contents."""

import contextlib
import dataclasses
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from adalink_jax.data.label_sets import SEPARATORS, items_of, separator_for
from adalink_jax.data.user_files import table_files, table_rows
from adalink_jax.data.user_files.delimited_files import DELIMITERS, records, separator_line, was_quoted
from adalink_jax.data.user_files.file_settings import ALTERNATIVES
from adalink_jax.data.user_files.file_splits import files_of, first_of
from adalink_jax.data.user_files.image_files import ARCHIVES, Pictures
from adalink_jax.data.user_files.input_target_guess import (
    TARGETS,
    Cells,
    are_ids,
    column_texts,
    guess_inputs,
    guess_targets,
)
from adalink_jax.data.user_files.table_search import files_at
from adalink_jax.errors import UserError
from adalink_jax.files.places import path_of, regular_file

ROWS_READ = 1_000
WINDOWS = "cp1252"
PICTURES_TRIED = 50
SPLITS = ("split", "set", "fold", "subset", "partition")


@dataclasses.dataclass(frozen=True)
class Guess:
    """Guessed settings of a `FileTask`.

    Attributes:
      settings: name -> value, without settings that keep their defaults.
      doubts: guesses that had alternatives, for the user.
    """

    settings: dict[str, Any]
    doubts: tuple[str, ...]


def guess(data: str, known: Mapping[str, str | None]) -> Guess:
    """Reads the beginning of a file or folder and guesses its settings.

    Args:
      data: the file; a folder of images by class; or a folder with one table per split.
      known: `inputs`, `targets`, `image`, `images`, `encoding`, `lists` as the user gave them; None for those to guess.

    Raises:
      UserError: for what cannot be read, and if the use of the columns cannot be guessed.
    """
    files = files_at(data)
    first = files_of(files)["train"][0]
    if not os.path.isdir(first):
        table_files.table_file(first)
    doubts: list[str] = []
    encoding = known.get("encoding") or _encoding(first, doubts)
    delimiter = _delimiter(first, encoding, doubts)
    settings: dict[str, Any] = {"data": files} | ({} if delimiter is None else {"delimiter": delimiter})
    settings |= {} if encoding is None else {"encoding": encoding}
    separator = delimiter or DELIMITERS.get(table_files.suffix_of(first), "")
    if not os.path.isdir(first) and was_quoted(first, separator, ROWS_READ, encoding):
        settings["quoted"] = True
        doubts.append(
            f"Cells of {first} are in quotation marks, which enclose them; if the marks are text, delete QUOTED from the file"
        )
    if not _has_header(first, separator, settings.get("quoted"), encoding):
        cells = next(records(first, separator, settings.get("quoted"), encoding), [])
        settings["columns"] = tuple(f"column_{i}" for i in range(1, len(cells) + 1))
        doubts.append(
            f"The first line of {first} is read as data, not as a header; if it is one, delete COLUMNS from the file"
        )
    table = table_files.open_table(first, settings.get("columns"), delimiter, settings.get("quoted"), encoding)
    rows = [row.cells for row in first_of(table.rows(), ROWS_READ)]
    if not rows:
        why = next(
            (f": line {row.line}: {row.reason}" for row in table.rows() if isinstance(row, table_files.BadRow)), ""
        )
        raise UserError(f"{first} has no rows that can be read below its header{why}; mend the file.")
    filled = [name for name in table.columns if any(table_rows.cell(row, name) not in (None, "", []) for row in rows)]
    unused = [name for name in filled if not set(name) & set("{}")]  # templates cannot name these
    names_splits = lambda name: all(table_files.split_of(text) is not None for text in column_texts(rows, name) or [""])
    split = next((name for name in unused if name.lower() in SPLITS and names_splits(name)), None)
    if split is not None and isinstance(files, str):
        settings["split"] = split
    unused = [name for name in unused if name != split]
    settings |= _image(first, unused, rows, known, doubts)
    in_image = re.findall(r"\{([^{}]*)\}", settings.get("image", ""))
    unused = [name for name in unused if name not in in_image]
    _check_templates(known, filled)
    settings["targets"] = known.get("targets") or guess_targets(
        first, unused, rows, known.get("inputs"), "image" in settings, doubts
    )
    target = next((name for name in unused if settings["targets"] == f"{{{name}}}"), None)
    settings |= _lists(first, target, rows, known.get("lists"))
    unused = [name for name in unused if f"{{{name}}}" not in settings["targets"]]
    settings["inputs"] = known.get("inputs") or guess_inputs(unused, rows, "image" in settings, doubts)
    _report_unused(unused, rows, settings["inputs"], doubts)
    return Guess(settings, tuple(doubts))


def _check_templates(known: Mapping[str, str | None], columns: Sequence[str]) -> None:
    """Raises:
    UserError: for a template without a column, which is the same text in every row.
    """
    for side in ("targets", "inputs"):
        text = known.get(side) or ""
        if text in columns or (side == "targets" and text and "{" not in text):
            meant = text if text in columns else "COLUMN"
            raise UserError(
                f"--{side} {text!r} is the same text in every row; for a column write --{side} '{{{meant}}}', of {', '.join(columns)}."
            )


def _report_unused(columns: Sequence[str], rows: Sequence[Cells], inputs: str, doubts: list[str]) -> None:
    """Adds the columns with texts or numbers that nothing reads, but for the numbers of rows and those that other doubts name."""
    named = {word for doubt in doubts for word in re.findall(r"[^\s,;]+", doubt)}
    left = [
        name
        for name in columns
        if f"{{{name}}}" not in inputs and name not in named and not are_ids(name, column_texts(rows, name) or [""])
    ]
    if left:
        example = " ".join((inputs, *(f"{{{name}}}" for name in left[:2])))
        doubts.append(f"Not used: {', '.join(left)}; to give the model some, use --inputs, such as {example!r}")


# --- the form of a CSV or TSV ---


def _encoding(path: str, doubts: list[str]) -> str | None:
    """`cp1252`, Windows' own, if the first lines of a file of text are not UTF-8 and are that; None for UTF-8."""
    if os.path.isdir(path) or table_files.suffix_of(path) not in table_files.OF_TEXT:
        return None
    texts = itertools.islice(table_rows.lines(regular_file(path)), ROWS_READ)
    other = next((text for text in texts if table_rows.not_utf_8(text)), None)
    if other is None:
        return None
    with contextlib.suppress(UnicodeDecodeError):
        word = next(word for word in other.split() if table_rows.not_utf_8(word))
        read = word.encode(errors="surrogateescape").decode(WINDOWS)
        doubts.append(
            f"{path} is not UTF-8 and is read as {WINDOWS}, with {read[:40]!r} in it; if that is wrong, name the --encoding"
        )
        return WINDOWS
    return None


def _delimiter(path: str, encoding: str | None, doubts: list[str]) -> str | None:
    """The delimiter of a CSV or TSV, if it is not the usual one and no first line `sep=;` names it."""
    usual = DELIMITERS.get(table_files.suffix_of(path))
    if usual is None or os.path.isdir(path):
        return None
    if (stated := separator_line(next(table_rows.lines(regular_file(path), encoding), ""))) is not None:
        doubts.append(f"The first line of {path} names the delimiter, {stated!r}, and is not read as a row")
        return None
    first = next(records(path, usual, None, encoding), [""])
    sign = next((sign for sign in "\t;|," if sign != usual and sign in first[0]), None) if len(first) == 1 else None
    if sign is not None:
        doubts.append(f"{path} is separated by {sign!r}; if it is not, change DELIMITER in the file")
    return sign


def _has_header(path: str, delimiter: str, quoted: bool | None, encoding: str | None) -> bool:
    """Whether the first line names columns: no cell is a number, long, repeated, or found again in its column."""
    if not delimiter or os.path.isdir(path):
        return True
    names, *rows = [*itertools.islice(records(path, delimiter, quoted, encoding), 200)] or [[]]
    if not names:
        return True
    filled = [name.strip() for name in names if name.strip()]
    number = lambda text: re.fullmatch(r"[-+]?\d+(\.\d+)?", text) is not None
    if not filled or len(set(filled)) < len(filled) or any(number(name) or len(name) > 60 for name in filled):
        return False
    return not any(name.strip() and name == cell for row in rows for name, cell in zip(names, row))


# --- columns ---


def _lists(path: str, target: str | None, rows: Sequence[Cells], known: str | None) -> dict[str, str]:
    """`lists`, and `label_separator` if it is not the usual one; empty if the target has no lists.

    Raises:
      UserError: if the user has not stated what lists are, or if the target has no lists.
    """
    values = [] if target is None else [table_rows.cell(row, target) for row in rows]
    lists = [items for value in values if (items := items_of(value)) is not None]
    longest = max(lists, key=len, default=[])
    if known is None:
        if len(longest) < 2:
            return {}
        raise UserError(
            f"The column {target} of {path} holds lists, such as {longest[:4]}; state what they are: --lists=alternatives if any "
            "one of the values is a right answer, or --lists=labels if all of them apply."
        )
    if target is None or (known == ALTERNATIVES and not lists):
        raise UserError(f"--lists is {known}, and the target of {path} has no lists; leave --lists out.")
    if known == ALTERNATIVES:
        return {"lists": known}
    texts = [str(item) for items in lists for item in items] if lists else list(map(str, values))
    separator = separator_for(texts, are_sets=not lists)
    return {"lists": known} | ({} if separator == SEPARATORS[0] else {"label_separator": separator})


def _image(
    path: str, columns: Sequence[str], rows: Sequence[Cells], known: Mapping[str, str | None], doubts: list[str]
) -> dict[str, str]:
    """`image`, and `images` if they are not in the table's folder; empty if there are no images."""
    images = known.get("images")
    if image := known.get("image"):
        return {"image": image} | ({"images": images} if images else {})
    if os.path.isdir(path):
        return {"image": f"{{{table_files.IMAGE}}}"}
    for name in columns:
        value = table_rows.cell(rows[0], name)
        if isinstance(value, bytes) or table_rows.is_picture(value):
            return {"image": f"{{{name}}}"}
    folder = path_of(table_files.folder_of(path))
    inside = lambda: (file for file in sorted(folder.iterdir()) if file.is_dir() or file.suffix.lower() in ARCHIVES)
    for root in [images] if images else [str(folder), *map(str, inside())]:
        try:
            pictures = Pictures(root)
        except UserError:
            if images:
                raise
            continue  # an archive of something else
        for name in columns:
            if (template := _picture_template(name, rows, pictures)) is not None:
                return {"image": template} | ({} if root == str(folder) else {"images": root})
    if images:
        raise UserError(f"No column of {path} names pictures in {images}; name it: --image '{{COLUMN}}'.")
    if lost := next(filter(None, (_lost_pictures(name, rows, Pictures(str(folder))) for name in columns)), None):
        if not known.get("inputs"):
            raise UserError(f"{lost}; give --images, or leave the pictures out with --inputs.")
        doubts.append(f"{lost}; to train with the pictures, give --images")
    return {}


def _lost_pictures(name: str, rows: Sequence[Cells], pictures: Pictures) -> str | None:
    """If most cells of the column have the name of a picture: what is missing, in words."""
    texts = [text for text in column_texts(rows, name) if text][:PICTURES_TRIED]
    named = [text for text in texts if text.lower().endswith(table_files.PICTURES)]
    if not named or len(named) < 0.9 * len(texts):
        return None
    problems = [problem for text in named if (problem := pictures.problem(text)) is not None]
    return (
        f"The column {name} names pictures, and {len(problems)} of its first {len(named)} cannot be used: {problems[0]}"
    )


def _picture_template(name: str, rows: Sequence[Cells], pictures: Pictures) -> str | None:
    """`{NAME}`, or with a suffix, if most cells of the column name images that exist; those of a target need their own suffix."""
    texts = [text for text in column_texts(rows, name) if text]
    texts = texts[:: -(-len(texts) // PICTURES_TRIED) or 1]
    if not texts or any("\n" in text or len(text) > 200 for text in texts):
        return None
    for suffix in ("", *(table_files.PICTURES if name.lower() not in TARGETS else ())):
        if suffix == "" and not texts[0].lower().endswith(table_files.PICTURES):
            continue
        if sum(pictures.problem(text + suffix) is None for text in texts) >= 0.9 * len(texts):
            return f"{{{name}}}{suffix}"
    return None
