"""Rows of a table -> examples in their splits, with all that is wrong with them counted.

Invariant: no example is in two of `train`, `validation` and `test`: rows of one group are in one split, and what stands in two files is
refused, or left out of the one that is trained on.
"""

import dataclasses
import hashlib
import itertools
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from adalink_jax.data.splits import Splits, as_published, carved, halved, position_of
from adalink_jax.data.user_files import row_checks, table_files
from adalink_jax.data.user_files.image_files import Pictures, RowPicture
from adalink_jax.data.user_files.row_checks import Finding
from adalink_jax.data.user_files.row_store import Rows, Writer
from adalink_jax.data.user_files.text_templates import Template
from adalink_jax.errors import UserError

TRAIN, VALIDATION, TEST = "train", "validation", "test"
LONG_ROW = 50  # lines, from which on a row may have swallowed others


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


@dataclasses.dataclass(frozen=True)
class Read:
    """What was read.

    Attributes:
      splits: name -> its examples.
      findings: what is wrong with them.
      notes: what else there is to tell, for people.
      pictures: folders and archives; a row's `root` is a number in this list.
      several: whether a row has several references.
    """

    splits: dict[str, Split]
    findings: list[Finding]
    notes: list[str]
    pictures: list[Pictures]
    several: bool


class _Source:
    """What is read of a published split."""

    def __init__(self):
        self.writer, self.bad, self.empty, self.long = Writer(), [], [], []
        self.bad_lines = 0
        self.several = False
        self._identities, self._groups = array("Q"), array("Q")

    def add(self, example: dict) -> None:
        """An example, with its `identity` and `group`."""
        self._identities.append(example.pop("identity"))
        self._groups.append(example.pop("group"))
        self.several |= len(example["references"]) > 1
        self.writer.append(example)

    def finish(self) -> None:
        """No more rows come."""
        self.rows = self.writer.finish()
        self.identities, self.groups = (np.array(each, np.uint64) for each in (self._identities, self._groups))
        self.positions = np.array([position_of(int(group)) for group in self.groups])


def read(task, on_rows: Callable[[int], None] = lambda count: None) -> Read:
    """Reads all of a task's rows once.

    Args:
      task: a `FileTask`.
      on_rows: told how many more were read, now and then.

    Raises:
      UserError: for files, settings and columns that do not fit each other, and splits without examples.
    """
    sources: dict[str, _Source] = {}
    pictures: list[Pictures] = []
    files = files_of(task.data)
    if task.split is not None and len(files) > 1:
        raise UserError("DATA names a file for each split, and SPLIT a column for it; give one of them.")
    for name, paths in files.items():
        for path in paths:
            _read_file(task, path, name, sources, pictures, on_rows)
    for source in sources.values():
        source.finish()
    notes = []
    if TEST in sources and not len(sources[TEST].rows) and not sources[TEST].bad:
        del sources[TEST]
        notes.append("the test split has no targets: it is none, and another is made of what has")
    findings = [finding for name, source in sources.items() for finding in _of_reading(name, source)]
    splits, shared = _divided(task, sources)
    return Read(splits, findings + shared, notes, pictures, any(source.several for source in sources.values()))


def files_of(data) -> dict[str, tuple[str, ...]]:
    """The files of each published split.

    Raises:
      UserError: for a setting of another form.
    """
    named = {TRAIN: data} if isinstance(data, (str, tuple, list)) else data
    many = lambda value: (value,) if isinstance(value, str) else tuple(value)
    if not isinstance(named, Mapping) or TRAIN not in named or not set(named) <= {TRAIN, VALIDATION, TEST}:
        raise UserError(f"DATA is {data!r}; it takes a file, or files by 'train', 'validation' and 'test'.")
    return {split: many(named[split]) for split in (TRAIN, VALIDATION, TEST) if split in named}


def picture_root(images: str | None, path: str) -> str:
    """The folder or archive where a table's pictures lie."""
    if images is not None:
        return images
    return folder_of(path) if table_files.suffix_of(path) in table_files.SUFFIXES else path


def folder_of(path: str) -> str:
    """The folder in which a file lies."""
    head = path.rpartition("/")[0]
    return head if head else "."


def _read_file(task, path: str, published: str, sources: dict, pictures: list[Pictures], on_rows) -> None:
    table = table_files.open_table(path, task.columns, task.delimiter)
    if len(table.columns) == 1 and (other := next((sign for sign in "\t;|," if sign in table.columns[0]), None)):
        raise UserError(f"{path} has one column, {table.columns[0]!r}; is it separated by {other!r}? Set DELIMITER.")
    if task.split is not None and task.split not in table.columns:
        raise UserError(f"SPLIT is the column {task.split!r}; {path} has {', '.join(table.columns)}.")
    source = sources.setdefault(published, _Source())
    wanted = Template("TARGETS", task.targets).columns
    if published == TEST and wanted and not set(wanted) & set(table.columns):
        return  # as test files without labels are published
    form = _Form(task, path, table.columns, pictures)
    counted = 0
    for counted, row in enumerate(table.rows(), 1):  # noqa: B007
        if counted % 1000 == 0:
            on_rows(1000)
        if isinstance(row, table_files.Bad):
            source.bad.append(f"line {row.line} of {path}: {row.reason}")
            source.bad_lines += row.lines
            continue
        mine = source if task.split is None else _of_split_column(task, path, row, sources)
        example = form(row.cells)
        if isinstance(example, str):
            mine.bad.append(f"line {row.line} of {path}: {example}")
            mine.bad_lines += row.lines
        elif example is None:
            mine.empty.append(f"line {row.line} of {path}")
        else:
            mine.add(example | {"line": row.line})
            if row.lines >= LONG_ROW:
                mine.long.append(f"line {row.line} of {path}, {row.lines} lines")
    on_rows(counted % 1000)
    if not counted:
        raise UserError(f"{path} has no rows below its header.")


def _of_split_column(task, path: str, row: table_files.Row, sources: dict) -> _Source:
    named = str(row.cells.get(task.split) or "")
    where = table_files.split_of(named)
    if where is None:
        raise UserError(
            f"Line {row.line} of {path} has {named!r} in its column {task.split!r} (SPLIT), which names no split."
        )
    return sources.setdefault(where, _Source())


class _Form:
    """A row as an example."""

    def __init__(self, task, path: str, columns: Sequence[str], pictures: list[Pictures]):
        self._templates = {
            setting: Template(setting.upper(), text, columns)
            for setting in ("inputs", "targets", "image", "group")
            if (text := getattr(task, setting)) is not None
        }
        self._picture = None
        if task.image is not None:
            root = picture_root(task.images, path)
            known = [each.root for each in pictures]
            if root not in known:
                pictures.append(Pictures(root))
                known.append(root)
            self._root = known.index(root)
            self._pictures = pictures[self._root]
            self._picture = RowPicture(self._templates["image"], self._pictures)

    def __call__(self, cells: Mapping) -> dict | str | None:
        """The example; in words why there is none; or None where it is empty."""
        templates = self._templates
        try:
            inputs, references = templates["inputs"].text(cells), templates["targets"].texts(cells)
            image = {} if self._picture is None else self._picture(cells)
            group = templates["group"].text(cells) if "group" in templates else None
            if isinstance(image, str):
                return image
            if not references or not (inputs or image) or (self._picture is not None and not image):
                return None
            key = self._pictures.key(image["image_name"]) if "image_name" in image else image.get("image", "")
        except (TypeError, OSError) as e:
            return str(e)
        identity = _digest(inputs, key)
        where = identity if group is None and not key else _digest(key if group is None else group)
        return {
            "inputs": inputs, "references": references, "image_name": None, "image": None, **image,
            "root": self._root if "image_name" in image else None, "identity": identity, "group": where,
        }  # fmt: skip


def _digest(*parts: str | bytes) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.encode())
        digest.update(b"\x1f")
    return int.from_bytes(digest.digest(), "big")


def _of_reading(name: str, source: _Source) -> Iterator[Finding]:
    rows = len(source.rows) + source.bad_lines + len(source.empty)
    for kind, what, told, count in (
        (row_checks.UNPARSED, "do not parse and are left out", source.bad, source.bad_lines),
        (row_checks.EMPTY, "have no input or no target and are left out", source.empty, len(source.empty)),
        (
            row_checks.LONG,
            f"take {LONG_ROW} lines or more; is a quotation mark left open?",
            source.long,
            len(source.long),
        ),
    ):
        yield Finding(kind, f"rows of {name} {what}", count, rows, row_checks.named(told, len(told)))


# --- splits ---


def _parts(task, published: Mapping) -> Splits:
    """Where each of our splits comes from, by what is there."""
    if VALIDATION in published:
        return as_published() if TEST in published else halved()
    return carved(task.validation_share, test=TEST if TEST in published else None, test_share=task.test_share)


def _divided(task, sources: Mapping[str, _Source]) -> tuple[dict[str, Split], list[Finding]]:
    for name, source in sources.items():
        if not len(source.rows):
            raise UserError(f"There are no examples in {name}; see DATA, SPLIT and TARGETS.")
    if TRAIN not in sources:
        raise UserError("There are no examples to train on; see DATA and SPLIT.")
    parts = _parts(task, sources)
    numbers = {
        name: np.flatnonzero((part.low <= sources[part.split].positions) & (sources[part.split].positions < part.high))
        for name, part in parts.items()
    }
    findings = []
    for name, others in ((TRAIN, (VALIDATION, TEST)), (VALIDATION, (TEST,))):
        twice = np.zeros(len(numbers[name]), bool)
        for known in ("identities", "groups") if task.group is not None else ("identities",):
            keys = {split: getattr(sources[parts[split].split], known)[numbers[split]] for split in (name, *others)}
            twice |= np.isin(keys[name], np.concatenate([keys[other] for other in others]))
        rows = [sources[parts[name].split].rows[int(i)] for i in numbers[name][twice][: row_checks.TOLD]]
        told = row_checks.named([f"line {row['line']}, {row['inputs'][:60]!r}" for row in rows], int(twice.sum()))
        what = f"examples of {name}{'' if task.group is None else ', or others of their group,'} are in"
        fate = " and are left out" if task.drop_shared else ""
        findings.append(
            Finding(row_checks.SHARED, f"{what} {' or '.join(others)} too{fate}", int(twice.sum()), len(twice), told)
        )
        if task.drop_shared:
            numbers[name] = numbers[name][~twice]
    splits = {name: Split(sources[part.split].rows, numbers[name]) for name, part in parts.items()}
    for name, split in splits.items():
        if not len(split):
            raise UserError(
                f"The split {name} has no examples; give it a file (DATA), or a larger share "
                f"(VALIDATION_SHARE, TEST_SHARE) of the {len(sources[TRAIN].rows):,} rows."
            )
    return splits, findings


def first_of(rows: Iterator, count: int) -> list:
    """The first few rows that parse."""
    return list(itertools.islice((row for row in rows if isinstance(row, table_files.Row)), count))
