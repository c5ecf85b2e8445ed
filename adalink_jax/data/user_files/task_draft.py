"""What the columns of a table are for, by their names and what they hold: a first draft that a person reads and corrects."""

import dataclasses
import itertools
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

from adalink_jax.data.user_files import table_files
from adalink_jax.data.user_files.file_splits import files_of, first_of, folder_of
from adalink_jax.data.user_files.image_files import ARCHIVES, Pictures
from adalink_jax.data.user_files.text_templates import cell_text
from adalink_jax.errors import UserError

LOOKED_AT = 1_000  # rows
FEW_LABELS = 50
PICTURES_LOOKED_FOR = 50
TARGETS = (
    "target", "targets", "label", "labels", "answer", "answers", "output", "outputs", "completion", "response", "summary",
    "caption", "captions", "alt", "translation", "class", "category", "sentiment", "gold",
)  # fmt: skip
INPUTS = (
    "instruction", "question", "query", "prompt", "input", "inputs", "source_text", "text", "sentence", "sentence1", "sentence2",
    "premise", "hypothesis", "context", "passage", "document", "article", "review", "title", "content", "body",
)  # fmt: skip
SPLITS = ("split", "set", "fold", "subset", "partition")


@dataclasses.dataclass(frozen=True)
class Draft:
    """Settings of a `FileTask`, by its names; those that are its defaults are left out.

    Attributes:
      settings: name -> value.
      doubts: what was chosen of several, for people.
    """

    settings: dict
    doubts: tuple[str, ...]


def draft(data: str, given: Mapping[str, str | None]) -> Draft:
    """Looks at a file or a folder.

    Args:
      data: the file; a folder of images by class; or a folder with one table for each split.
      given: `inputs`, `targets`, `image`, `images`: what is known; None for what is to be guessed.

    Raises:
      UserError: for what cannot be read, and columns whose use cannot be told.
    """
    files = _files(data)
    first = files_of(files)["train"][0]
    settings: dict = {"data": files}
    delimiter = _delimiter(first)
    if delimiter is not None:
        settings["delimiter"] = delimiter
    doubts: list[str] = []
    if not _has_header(first, delimiter):
        count = len(
            next(table_files.records(first, delimiter or table_files.DELIMITERS[table_files.suffix_of(first)]), [])
        )
        settings["columns"] = tuple(f"column_{i}" for i in range(1, count + 1))
        doubts.append(f"The first line of {first} is read as data, not as a header; if it is one, delete COLUMNS")
    table = table_files.open_table(first, settings.get("columns"), delimiter)
    rows = [row.cells for row in first_of(table.rows(), LOOKED_AT)]
    if not rows:
        raise UserError(f"{first} has no rows that can be read below its header.")
    left = list(table.columns)
    split = _split_column(left, rows)
    if split is not None and isinstance(files, str):
        settings["split"] = split
    left = [name for name in left if name != split]
    settings |= _image(first, left, rows, given)
    in_image = re.findall(r"\{([^{}]*)\}", settings.get("image", ""))
    left = [name for name in left if name not in in_image]
    settings["targets"] = given.get("targets") or _targets(first, left, rows, doubts)
    left = [name for name in left if f"{{{name}}}" not in settings["targets"]]
    settings["inputs"] = given.get("inputs") or _inputs(left, rows, "image" in settings, doubts)
    return Draft(settings, tuple(doubts))


# --- files ---


def _files(data: str) -> str | dict[str, str | tuple[str, ...]]:
    """The table; or, where others beside it are for the other splits, all by split."""
    where = pathlib.Path(data)
    if where.is_dir():
        held = [file for file in sorted(where.iterdir()) if table_files.suffix_of(file.name) in table_files.SUFFIXES]
        found: dict[str, list[str]] = {}
        for file in held:
            if (split := _split_in(file.name)) is not None:
                found.setdefault(split, []).append(str(file))
        for split, files in found.items():
            if len({re.sub(r"\d+", "0", file) for file in files}) > 1:
                raise UserError(f"{data} has several files for {split}: {', '.join(files)}; name the table itself.")
        if "train" in found:
            one = lambda files: files[0] if len(files) == 1 else tuple(files)
            return {split: one(found[split]) for split in table_files.SPLIT_NAMES if split in found}
        if held:
            raise UserError(f"{data} holds tables, none of which is called train; name the table itself.")
        return data
    word = _split_word(where.name)
    if word is None or table_files.split_of(word) != "train" or not where.parent.is_dir():
        return data
    beside = {file.name.lower(): str(file) for file in where.parent.iterdir() if file != where}
    others: dict[str, str] = {}
    for split in ("validation", "test"):
        names = (
            re.sub(rf"(?<![a-z]){word}(?![a-z])", name, where.name.lower()) for name in table_files.SPLIT_NAMES[split]
        )
        if (file := next((beside[name] for name in names if name in beside), None)) is not None:
            others[split] = file
    return {"train": data, **others} if others else data


def _split_word(name: str) -> str | None:
    """The word of a file's name that names a split."""
    return next((word for word in re.split(r"[\W_\d]+", name.lower()) if table_files.split_of(word) is not None), None)


def _split_in(name: str) -> str | None:
    """The split that a file's name says."""
    word = _split_word(name)
    return None if word is None else table_files.split_of(word)


def _delimiter(path: str) -> str | None:
    """The one that a CSV or TSV has, where it is not its own."""
    own = table_files.DELIMITERS.get(table_files.suffix_of(path))
    if own is None or os.path.isdir(path):
        return None
    first = next(table_files.records(path, own), [""])
    return next((sign for sign in "\t;|," if sign != own and sign in first[0]), None) if len(first) == 1 else None


def _has_header(path: str, delimiter: str | None) -> bool:
    """Whether the first line names columns: no cell of it is a number, long, there twice, or found again in its column."""
    own = table_files.DELIMITERS.get(table_files.suffix_of(path))
    if own is None or os.path.isdir(path):
        return True
    names, *rows = [*itertools.islice(table_files.records(path, delimiter or own), 200)] or [[]]
    if not names:
        return True
    told = [name.strip() for name in names if name.strip()]
    number = lambda text: re.fullmatch(r"[-+]?\d+(\.\d+)?", text) is not None
    if not told or len(set(told)) < len(told) or any(number(name) or len(name) > 60 for name in told):
        return False
    return not any(name.strip() and name == cell for row in rows for name, cell in zip(names, row))


# --- columns ---


def _texts(rows: Sequence[dict], name: str) -> list[str]:
    """What a column holds that is text or a number; lists of it one after the other."""
    found = []
    for row in rows:
        value = row.get(name)
        for each in value if isinstance(value, list) else (value,):
            try:
                found.append(cell_text(each))
            except TypeError:
                return []
    return found


def _split_column(columns: Sequence[str], rows: Sequence[dict]) -> str | None:
    fits = lambda name: all(table_files.split_of(text) is not None for text in _texts(rows, name) or [""])
    return next((name for name in columns if name.lower() in SPLITS and fits(name)), None)


def _image(path: str, columns: Sequence[str], rows: Sequence[dict], given: Mapping) -> dict:
    """`image`, and `images` where they lie elsewhere than in the table's folder."""
    if given.get("image"):
        return {"image": given["image"]} | ({"images": given["images"]} if given.get("images") else {})
    if os.path.isdir(path):
        return {"image": f"{{{table_files.IMAGE}}}"}
    for name in columns:
        value = rows[0].get(name)
        if isinstance(value, bytes) or (isinstance(value, Mapping) and "bytes" in value):
            return {"image": f"{{{name}}}"}
    folder = pathlib.Path(folder_of(path))
    roots = [given["images"]] if given.get("images") else [
        str(folder), *(str(each) for each in sorted(folder.iterdir()) if each.is_dir() or each.suffix.lower() in ARCHIVES)
    ]  # fmt: skip
    for root in roots:
        try:
            pictures = Pictures(root)
        except UserError:
            if given.get("images"):
                raise
            continue  # an archive of something else
        for name in columns:
            texts = [text for text in _texts(rows, name) if text][:PICTURES_LOOKED_FOR]
            if not texts or any("\n" in text or len(text) > 200 for text in texts):
                continue
            for suffix in ("", *table_files.PICTURES):
                if suffix == "" and not texts[0].lower().endswith(table_files.PICTURES):
                    continue
                there = sum(pictures.problem(text + suffix) is None for text in texts)
                if there >= 0.9 * len(texts):
                    elsewhere = {} if root == str(folder) else {"images": root}
                    return {"image": f"{{{name}}}{suffix}", **elsewhere}
    if given.get("images"):
        raise UserError(f"No column of {path} names pictures in {given['images']}; say which: --image '{{COLUMN}}'.")
    return {}


def _targets(path: str, columns: Sequence[str], rows: Sequence[dict], doubts: list[str]) -> str:
    named = [name for known in TARGETS for name in columns if name.lower() == known]
    if named:
        if len(named) > 1:
            doubts.append(f"TARGETS is {named[0]}; it could be {' or '.join(named[1:])}")
        return f"{{{named[0]}}}"
    labels = {
        name: len(set(texts))
        for name in columns
        if (texts := _texts(rows, name)) and all(texts) and 2 <= len(set(texts)) <= min(FEW_LABELS, len(texts) // 2)
    }
    if not labels:
        raise UserError(
            f"Which column of {path} is to be predicted cannot be told; say so: --targets '{{COLUMN}}', of {', '.join(columns)}."
        )
    chosen = min(labels, key=labels.get)
    doubts.append(f"TARGETS is {chosen}, which has the fewest values; no column has a name that says it is the target")
    return f"{{{chosen}}}"


def _inputs(columns: Sequence[str], rows: Sequence[dict], has_image: bool, doubts: list[str]) -> str:
    named = [name for name in columns if name.lower() in INPUTS]
    if not named and has_image:
        if columns:
            doubts.append(f"INPUTS names no column; there are {', '.join(columns)}")
        return "what is this?"
    if not named:
        lengths = {name: sum(map(len, texts)) / len(texts) for name in columns if (texts := _texts(rows, name))}
        if not lengths:
            raise UserError("Which columns are the input cannot be told; say so: --inputs 'text: {COLUMN}'.")
        named = [max(lengths, key=lengths.get)]
        if len(lengths) > 1:
            doubts.append(f"INPUTS is {named[0]}, the longest text; no column has a name that says it is the input")
    named.sort(key=columns.index)
    if len(named) == 1:
        return f"{{{named[0]}}}"
    return " ".join(f"{name}: {{{name}}}" for name in named)
