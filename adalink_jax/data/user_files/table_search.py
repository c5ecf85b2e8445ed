"""Finds the files of each split: beside a table, in a folder of tables, and in folders as Hugging Face's `datasets` writes them."""

import json
import os
import re
from collections.abc import Mapping, Sequence

from etils import epath

from adalink_jax.data.user_files import table_files
from adalink_jax.errors import UserError
from adalink_jax.files.places import path_of

Files = str | tuple[str, ...] | dict[str, str | tuple[str, ...]]
METADATA = "metadata"  # the name of the table in a folder of images
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"  # what `save_to_disk` writes beside a split, and beside several


def files_at(data: str) -> Files:
    """The files of DATA.

    Args:
      data: a table, whose name may have a split's; a folder of tables, or of images.

    Returns:
      The table or folder itself; or files by split.

    Raises:
      UserError: for a folder of tables of which it is not clear which to train on.
    """
    where = path_of(data)
    if where.is_dir():
        return _in_folder(where)
    word = _split_word(where.name)
    if word is None or table_files.split_of(word) != "train" or not where.parent.is_dir():
        return data
    beside = {file.name.lower(): str(file) for file in where.parent.iterdir() if file != where}
    others: dict[str, str | tuple[str, ...]] = {}
    for split in ("validation", "test"):
        names = (
            re.sub(rf"(?<![a-z]){word}(?![a-z])", name, where.name.lower()) for name in table_files.SPLIT_NAMES[split]
        )
        if (file := next((beside[name] for name in names if name in beside), None)) is not None:
            others[split] = file
    return {"train": data, **others} if others else data


def saved_tables(folder: epath.Path) -> tuple[str, ...]:
    """The Arrow files of a split that `save_to_disk` wrote to a folder, in order; none if it wrote no such folder.

    Raises:
      UserError: if it wrote several splits.
    """
    if (folder / SAVED_SPLITS).exists():
        splits = [str(path) for path in sorted(folder.iterdir(), key=str) if (path / SAVED).exists()]
        raise UserError(f"{folder} holds several splits; name one of {', '.join(splits)}.")
    return tuple(_saved_files(folder)) if (folder / SAVED).exists() else ()


def metadata_in(folder: epath.Path) -> str | None:
    """The table `metadata` that names the images of a folder (Hugging Face's imagefolder); None without one."""
    return next(filter(is_metadata, _tables(folder)), None)


def is_metadata(table: str) -> bool:
    """Whether a table has the name of one that names a folder's images; a `.json` may be anything."""
    return _stem(table) == METADATA and table_files.suffix_of(table) != ".json"


def _in_folder(folder: epath.Path) -> Files:
    """The tables in a folder by split; or the folder itself, if it holds images."""
    if (folder / SAVED).exists():
        return _several(_saved_files(folder))
    folders = {
        path: split
        for path in sorted(folder.iterdir(), key=lambda path: path.name)
        if path.is_dir() and (split := table_files.split_of(path.name)) is not None
    }
    by_split: dict[str, list[str]] = {}
    for path, split in folders.items():
        if (folder / SAVED_SPLITS).exists():
            by_split.setdefault(split, []).extend(_saved_files(path))
        elif metadata := [table for table in _tables(path) if _stem(table) == METADATA]:
            by_split.setdefault(split, []).append(metadata[0])
    if by_split:
        return _by_split(folder, by_split)
    tables = _tables(folder)
    if not tables and (folder / "data").is_dir():  # where the hub's data sets have theirs
        tables = _tables(folder / "data")
    for table in tables:
        if (split := table_files.split_of(_split_word(_stem(table)) or "")) is not None:
            by_split.setdefault(split, []).append(table)
    for split, names in by_split.items():
        if len({re.sub(r"\d+", "0", name) for name in names}) > 1:
            raise UserError(f"{folder} has several files for {split}: {', '.join(names)}; name the table itself.")
    if "train" in by_split:
        return _by_split(folder, by_split)
    if (metadata := next(filter(is_metadata, tables), None)) is not None:
        return metadata
    tables = [table for table in tables if table_files.suffix_of(table) != ".json"]
    if tables:
        raise UserError(f"{folder} holds tables, but none is called train; name the table itself, such as {tables[0]}.")
    return str(folder)


def _by_split(folder: epath.Path, files: Mapping[str, Sequence[str]]) -> dict[str, str | tuple[str, ...]]:
    if "train" not in files:
        raise UserError(f"{folder} has {', '.join(files)}, and no train; name the table to train on.")
    return {split: _several(files[split]) for split in table_files.SPLIT_NAMES if split in files}


def _several(files: Sequence[str]) -> str | tuple[str, ...]:
    return files[0] if len(files) == 1 else tuple(files)


def _tables(folder: epath.Path) -> list[str]:
    files = sorted(folder.iterdir(), key=lambda path: path.name)
    return [
        str(file) for file in files if table_files.suffix_of(file.name) in table_files.SUFFIXES and not file.is_dir()
    ]


def _saved_files(folder: epath.Path) -> list[str]:
    """The Arrow files that `save_to_disk` wrote to a folder, in order."""
    try:
        files = [str(folder / file["filename"]) for file in json.loads((folder / SAVED).read_text())["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{folder / SAVED} is missing or damaged ({e}); save the data set again.") from e
    if not files:
        raise UserError(f"{folder / SAVED} names no files; save a data set that has rows.")
    return files


def _stem(path: str) -> str:
    """A file's name in lower case, without its suffixes."""
    return os.path.splitext(os.path.basename(path).lower().removesuffix(".gz"))[0]


def _split_word(name: str) -> str | None:
    """The word in a file's name that names a split."""
    return next((word for word in re.split(r"[\W_\d]+", name.lower()) if table_files.split_of(word) is not None), None)
