"""Edits of a sound folder: bytes, values of JSON, headers of safetensors, and things that are not files."""

import json
import os
import pathlib
import re
import shutil
import stat
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st

LARGEST_FILE = 2**40  # bytes, of a file with holes
LARGEST_EDITED = 2**24


class Edit(NamedTuple):
    """One change of one file: its name, what is done, where (a fraction of its bytes or of its values), and with what."""

    file: str
    how: str
    where: float = 0.0
    value: Any = None


ODD_TEXTS = st.sampled_from(
    ["", " ", "a\nb", "[/bold]", "[red]", "\x1b[31m", "\x00", "nan", "1e3", "../x", "..", "/", "/dev/zero", "~", "%s {0} {x}",
     "$(touch PWN)", "é\u2028\u202e", "F32", "float32", "bundled:pali_nano_raw", "x" * 5000, "\U0001f600", "None", "0"]
)  # fmt: skip
TEXTS = st.one_of(ODD_TEXTS, st.text(max_size=12))
ODD_NUMBERS = st.sampled_from(
    [-1, 0, 1, 2, 2**15, 2**31, 2**45, 2**63, -(2**63), 2**64 + 1, 10**40, 0.5, -0.0, 1e308, float("nan"), float("inf")]
)
SCALARS = st.one_of(
    st.none(), st.booleans(), ODD_NUMBERS, st.integers(-5, 100), st.floats(allow_nan=True, width=32), TEXTS
)
VALUES = st.one_of(
    SCALARS, SCALARS,
    st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6),
    st.just([["touch", "PWN"]]), st.just({}), st.just([]),
)  # fmt: skip
WHERE = st.integers(0, 9_999).map(lambda number: number / 10_000)


def is_json(path: pathlib.Path) -> bool:
    """Whether a regular file of a usual size holds a JSON object or list."""
    if not path.is_file() or path.stat().st_size > LARGEST_EDITED:
        return False
    try:
        return isinstance(json.loads(path.read_bytes()), (dict, list))
    except (ValueError, OSError):
        return False


def files(folder: pathlib.Path) -> list[str]:
    """The names of all files below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def edits(folder: pathlib.Path, most: int = 3, only: Sequence[str] = ()) -> st.SearchStrategy[list[Edit]]:
    """Lists of edits of the files in a folder, or of some; files that are alike are drawn together as often as one file."""
    alike: dict[str, list[str]] = {}
    for name in files(folder) if not only else only:
        alike.setdefault(re.sub(r"\d+", "0", os.path.basename(name)), []).append(name)
    one = st.sampled_from(sorted(alike)).flatmap(lambda key: st.sampled_from(alike[key]))
    return st.lists(one.flatmap(lambda name: _of_file(folder / name, name)), min_size=1, max_size=most)


def _of_file(path: pathlib.Path, name: str) -> st.SearchStrategy[Edit]:
    edit = lambda how, value: st.builds(Edit, st.just(name), st.just(how), WHERE, value)
    of_bytes = st.one_of(
        edit("flip", st.integers(0, 7)), edit("flip", st.integers(0, 7)), edit("cut", st.none()),
        edit("overwrite", st.binary(min_size=1, max_size=8)), edit("insert", st.binary(min_size=1, max_size=8)),
        edit("drop", st.integers(1, 64)), edit("append", st.binary(min_size=1, max_size=8)),
    )  # fmt: skip
    of_files = st.one_of(
        edit("remove", st.none()), edit("empty", st.none()), edit("pipe", st.none()), edit("loop", st.none()),
        edit("folder", st.none()), edit("device", st.none()), edit("holes", st.none()), edit("rename", st.sampled_from(("x", "model.bin"))),
        edit("link", st.none()), edit("other", st.none()),
    )  # fmt: skip
    of_values = st.one_of(
        *[edit("value", VALUES)] * 4, edit("delete", st.none()), edit("name", TEXTS), edit("nudge", st.integers(-2, 2)),
        edit("copy", WHERE), edit("nest", st.sampled_from((5, 100_000))), edit("text", st.sampled_from(("[", "1" * 5000, "\ufeff"))),
    )  # fmt: skip
    if is_json(path):
        return st.one_of(of_values, of_values, of_values, of_bytes, of_files)
    if path.suffix == ".safetensors":
        return st.one_of(of_values, of_values, of_bytes, of_bytes, of_files)
    return st.one_of(of_bytes, of_bytes, of_bytes, of_files)


def damaged(originals: pathlib.Path, folder: pathlib.Path, changes: list[Edit]) -> None:
    """Copies a sound folder and edits the copy."""
    shutil.copytree(originals, folder, symlinks=True, copy_function=shutil.copyfile)
    for change in changes:
        path = folder / change.file
        if not path.is_symlink() and path.is_file():
            _apply(path, change, folder)


def _apply(path: pathlib.Path, change: Edit, folder: pathlib.Path) -> None:
    if change.how in ("value", "delete", "name", "nudge", "copy", "nest"):
        if path.stat().st_size > LARGEST_EDITED:
            return
        raw = path.read_bytes()
        head, text, tail = _parts(path, raw)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return
        text = change_json(value, change)
        path.write_bytes(_joined(head, text.encode("utf-8", "surrogatepass"), tail))
    elif change.how in ("flip", "cut", "overwrite", "insert", "drop", "append", "text"):
        if path.stat().st_size < LARGEST_EDITED:
            path.write_bytes(_bytes(path.read_bytes(), change))
    else:
        _replace(path, change, folder)


def _parts(path: pathlib.Path, raw: bytes) -> tuple[bool, bytes, bytes]:
    """Whether the JSON is a header, the JSON, and what follows it."""
    if path.suffix != ".safetensors" or len(raw) < 8:
        return False, raw, b""
    length = struct.unpack("<Q", raw[:8])[0]
    return True, raw[8 : 8 + length], raw[8 + length :]


def _joined(is_header: bool, text: bytes, tail: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text + tail if is_header else text + tail


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every `(container, key)` in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def change_json(value: Any, change: Edit) -> str:
    """The text of a JSON value after an edit."""
    places = list(_places(value))
    if not places:
        return json.dumps(change.value)
    container, key = places[int(change.where * len(places))]
    match change.how:
        case "value":
            container[key] = change.value
        case "delete":
            del container[key]
        case "name" if isinstance(container, dict):
            container[change.value] = container.pop(key)
        case "nudge" if isinstance(container[key], (int, float)):
            container[key] += change.value
        case "nudge" if isinstance(container[key], (str, list)):
            container[key] = container[key][:-1] if change.value < 0 else container[key] + container[key][:1]
        case "copy":
            source, name = places[int(change.value * len(places))]
            container[key] = json.loads(json.dumps(source[name]))
        case "nest":
            container[key] = "NEST"
            return json.dumps(value, indent=1).replace('"NEST"', "[" * change.value + "]" * change.value, 1)
    return json.dumps(value, indent=1)


def _bytes(raw: bytes, change: Edit) -> bytes:
    at = int(change.where * len(raw))
    match change.how:
        case "flip" if raw:
            return raw[:at] + bytes([raw[at] ^ (1 << change.value)]) + raw[at + 1 :]
        case "cut":
            return raw[:at]
        case "overwrite":
            return raw[:at] + change.value + raw[at + len(change.value) :]
        case "insert":
            return raw[:at] + change.value + raw[at:]
        case "drop":
            return raw[:at] + raw[at + change.value :]
        case "append":
            return raw + change.value
        case "text":
            text = change.value.encode()
            return text + raw if change.where < 0.5 else text
    return raw


def _replace(path: pathlib.Path, change: Edit, folder: pathlib.Path) -> None:
    """Puts something else in the place of a file."""
    if change.how == "empty":
        path.write_bytes(b"")
        return
    if change.how == "holes":
        with path.open("r+b") as file:
            file.truncate(LARGEST_FILE)
        return
    if change.how == "other":
        names = [name for name in files(folder) if (folder / name).stat().st_size < LARGEST_EDITED]
        if not names:
            return
        shutil.copyfile(folder / names[int(change.where * len(names))], folder.parent / "other")
        os.replace(folder.parent / "other", path)
        return
    if change.how == "link":  # to the same content elsewhere
        os.replace(path, folder.parent / f"linked_{path.name}")
        path.symlink_to(folder.parent / f"linked_{path.name}")
        return
    if change.how == "rename":
        os.replace(path, path.with_name(change.value))
        return
    path.unlink()
    match change.how:
        case "pipe":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path.name)
        case "folder":
            path.mkdir()
        case "device":  # its own, since a command that writes there might replace it
            try:
                os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
            except PermissionError:
                path.symlink_to("/dev/zero")
