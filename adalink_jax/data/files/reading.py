"""Rows of a table -> examples in their splits, with all that is wrong with them counted.

Invariant: no example is in two of `train`, `validation` and `test`: rows of one group are in one split, and what stands in two files is
refused, or left out of the one that is trained on.
"""

import dataclasses
import hashlib
from array import array
from collections.abc import Mapping

import numpy as np

from adalink_jax.data.files import checks, tables
from adalink_jax.data.files.checks import Finding
from adalink_jax.data.files.pictures import Pictures
from adalink_jax.data.files.store import Rows, Writer
from adalink_jax.data.files.templates import Template
from adalink_jax.data.splits import Part, Splits, as_published, carved, halved, position_of
from adalink_jax.errors import UserError

TRAIN, VALIDATION, TEST = "train", "validation", "test"


@dataclasses.dataclass(frozen=True)
class Split:
    """The examples of a split.

    Attributes:
      rows: of the file, or files.
      numbers: int64, which of them are the split's, in order.
    """

    rows: Rows
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> dict:
        return self.rows[int(self.numbers[number])]


class _Source:
    """What is read of a published split."""

    def __init__(self):
        self.writer, self.bad, self.empty = Writer(), [], []
        self.bad_lines = 0
        self.identities, self.positions = array("Q"), array("d")

    def finish(self):
        """No more rows come."""
        self.rows = self.writer.finish()
        self.identities = np.frombuffer(self.identities, np.uint64) if self.identities else np.zeros(0, np.uint64)
        self.positions = np.frombuffer(self.positions, float) if self.positions else np.zeros(0)


def read(task, on_rows=lambda count: None) -> tuple[dict[str, Split], list[Finding]]:
    """Reads all of a task's rows once.

    Args:
      task: a `FileTask`.
      on_rows: told how many more were read, now and then.

    Returns:
      The three splits, and what was found.

    Raises:
      UserError: for files, settings and columns that do not fit each other, and splits without examples.
    """
    files = {TRAIN: task.data} if isinstance(task.data, str) else dict(task.data)
    unknown = next((name for name in files if name not in (TRAIN, VALIDATION, TEST)), None)
    if unknown is not None or TRAIN not in files:
        raise UserError(f"DATA is {task.data!r}; it takes a file, or files by 'train', 'validation' and 'test'.")
    if task.split is not None and len(files) > 1:
        raise UserError("DATA names a file for each split, and SPLIT a column for it; give one of them.")
    sources = {name: _Source() for name in files}
    for name, path in files.items():
        _read_file(task, path, name, sources, on_rows)
    for source in sources.values():
        source.finish()
    findings = [finding for name, source in sources.items() for finding in _of_reading(name, source)]
    splits, shared = _divided(task, sources)
    return splits, findings + shared


def _read_file(task, path: str, published: str, sources: dict, on_rows) -> None:
    table = tables.open_table(path, task.columns, task.delimiter)
    if len(table.columns) == 1 and (other := _other_delimiter(table.columns[0])):
        raise UserError(f"{path} has one column, {table.columns[0]!r}; is it separated by {other!r}? Set DELIMITER.")
    templates = {
        setting: Template(setting.upper(), text, table.columns)
        for setting in ("inputs", "targets", "image", "group")
        if (text := getattr(task, setting)) is not None
    }
    if task.split is not None and task.split not in table.columns:
        raise UserError(f"SPLIT is the column {task.split!r}; {path} has {', '.join(table.columns)}.")
    form = _Form(task, path, templates)
    counted = 0
    for found in table.rows():
        counted += 1
        if counted % 1000 == 0:
            on_rows(1000)
        source = sources[published]
        if isinstance(found, tables.Bad):
            source.bad.append(f"line {found.line} of {path}: {found.reason}")
            source.bad_lines += found.lines
            continue
        line, row = found
        if task.split is not None:
            named = str(row.get(task.split) or "")
            where = tables.split_of(named)
            if where is None:
                raise UserError(
                    f"Line {line} of {path} has {named!r} in its column {task.split!r} (SPLIT), which names no split."
                )
            source = sources.setdefault(where, _Source())
        example = form(row)
        if isinstance(example, str):
            source.bad.append(f"line {line} of {path}: {example}")
            source.bad_lines += 1
        elif example is None:
            source.empty.append(f"line {line} of {path}")
        else:
            identity, position = example.pop("identity"), example.pop("position")
            source.identities.append(identity)
            source.positions.append(position)
            source.writer.append(example | {"line": line})
    on_rows(counted % 1000)
    if not counted:
        raise UserError(f"{path} has no rows below its header.")


def _other_delimiter(name: str) -> str | None:
    return next((sign for sign in "\t;|," if sign in name), None)


class _Form:
    """A row as an example."""

    def __init__(self, task, path: str, templates: Mapping[str, Template]):
        self._templates = templates
        self._pictures = None
        if task.image is not None:
            folder = path if task.images is None and tables.suffix_of(path) not in tables.SUFFIXES else task.images
            self._pictures = Pictures(folder_of(path) if folder is None else folder)
        self._checked: dict[str, str | None] = {}

    def __call__(self, row: Mapping) -> dict | str | None:
        """The example; in words why there is none; or None where it is empty."""
        templates = self._templates
        try:
            inputs, references = templates["inputs"].text(row), templates["targets"].texts(row)
            image = self._image(row)
            group = templates["group"].text(row) if "group" in templates else None
        except TypeError as e:
            return str(e)
        if isinstance(image, str):
            return image
        if not references or not (inputs or image) or (self._pictures is not None and not image):
            return None
        picture = image.get("image_name") or image.get("image") or ""
        identity = _digest(inputs, picture)
        where = identity if group is None and not picture else _digest(picture if group is None else group)
        return {
            "inputs": inputs, "references": references, "image_name": None, "image": None, **image,
            "identity": identity, "position": position_of(where),
        }  # fmt: skip

    def _image(self, row: Mapping) -> dict | str:
        """`image_name` or `image`; {} where there is none; or in words what is wrong with it."""
        if self._pictures is None:
            return {}
        template = self._templates["image"]
        value = row.get(template.columns[0]) if len(template.columns) == 1 else None
        if isinstance(value, Mapping):  # Hugging Face's images in Parquet
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return {"image": value} if value else {}
        name = template.text(row if not isinstance(value, str) else {template.columns[0]: value})
        if not name:
            return {}
        if name not in self._checked:
            self._checked[name] = self._pictures.problem(name)
        return self._checked[name] or {"image_name": name}


def folder_of(path: str) -> str:
    """The folder in which a file lies."""
    head = path.rpartition("/")[0]
    return head if head else "."


def _digest(*parts: str | bytes) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.encode())
        digest.update(b"\x1f")
    return int.from_bytes(digest.digest(), "big")


def _of_reading(name: str, source: _Source) -> list[Finding]:
    if name != TRAIN and not len(source.rows) and not source.bad:
        return []  # a test split without labels is none
    rows = len(source.rows) + source.bad_lines + len(source.empty)
    return [
        Finding(checks.UNPARSED, f"rows of {name} do not parse and are left out", source.bad_lines, rows,
                checks.named(source.bad, len(source.bad))),
        Finding(checks.EMPTY, f"rows of {name} have no input or no target and are left out", len(source.empty), rows,
                checks.named(source.empty, len(source.empty))),
    ]  # fmt: skip


# --- splits ---


def _parts(task, published: Mapping) -> Splits:
    """Where each of our splits comes from, by what is there."""
    if VALIDATION in published and TEST in published:
        return as_published()
    if VALIDATION in published:
        return halved()
    if TEST in published:
        return carved(task.validation_share)
    shares = (task.validation_share, task.validation_share + task.test_share)
    return {
        TRAIN: Part(TRAIN, shares[1], 1.0),
        VALIDATION: Part(TRAIN, 0.0, shares[0]),
        TEST: Part(TRAIN, shares[0], shares[1]),
    }


def _divided(task, sources: Mapping[str, _Source]) -> tuple[dict[str, Split], list[Finding]]:
    read = {name: source for name, source in sources.items() if len(source.rows)}
    if TRAIN not in read:
        raise UserError("There are no examples to train on; see DATA and SPLIT.")
    numbers, identities = {}, {}
    parts = _parts(task, read)
    for name, part in parts.items():
        source = read[part.split]
        numbers[name] = np.flatnonzero((part.low <= source.positions) & (source.positions < part.high))
        identities[name] = source.identities[numbers[name]]
    findings = []
    for name, others in ((TRAIN, (VALIDATION, TEST)), (VALIDATION, (TEST,))):
        elsewhere = np.concatenate([identities[other] for other in others])
        twice = np.isin(identities[name], elsewhere)
        lines = [read[parts[name].split].rows[int(i)] for i in numbers[name][twice][: checks.TOLD]]
        told = checks.named([f"line {row['line']}, {row['inputs'][:60]!r}" for row in lines], int(twice.sum()))
        fate = " and are left out" if task.drop_shared else ""
        findings.append(
            Finding(
                checks.SHARED,
                f"examples of {name} are in {' or '.join(others)} too{fate}",
                int(twice.sum()),
                len(twice),
                told,
            )
        )
        if task.drop_shared:
            numbers[name], identities[name] = numbers[name][~twice], identities[name][~twice]
    splits = {name: Split(read[part.split].rows, numbers[name]) for name, part in parts.items()}
    for name, split in splits.items():
        if not len(split):
            raise UserError(
                f"The split {name} has no examples; give it a file (DATA), or a larger share "
                f"(VALIDATION_SHARE, TEST_SHARE) of the {len(read[TRAIN].rows):,} rows."
            )
    return splits, findings
