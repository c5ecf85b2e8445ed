"""Reads the rows of tables into splits, and counts all that is wrong with them.

Invariant: no example is in two of `train`, `validation` and `test`: rows of one group are in one split, and rows that are in two
files are refused, or dropped from the split that is trained on.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from adalink_jax.data.splits import as_published, carved, halved
from adalink_jax.data.user_files import row_checks, table_files, table_rows
from adalink_jax.data.user_files.delimited_files import doubled
from adalink_jax.data.user_files.file_settings import FileSettings
from adalink_jax.data.user_files.image_files import Pictures
from adalink_jax.data.user_files.row_checks import Finding
from adalink_jax.data.user_files.row_form import LONG_ROW, RowForm, RowSource
from adalink_jax.data.user_files.row_store import Rows, StoredRow
from adalink_jax.data.user_files.text_templates import Template
from adalink_jax.errors import UserError

TRAIN, VALIDATION, TEST = "train", "validation", "test"


@dataclasses.dataclass(frozen=True)
class Split:
    """The rows of a split.

    Attributes:
      rows: all rows of the files that the split is taken from.
      numbers: int64, which of them are in the split, in order.
    """

    rows: Rows
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> StoredRow:
        return self.rows[int(self.numbers[number])]


@dataclasses.dataclass(frozen=True)
class Contents:
    """The contents of a task's files.

    Attributes:
      splits: name -> its rows.
      findings: what is wrong with them.
      notes: other remarks for the user.
      folders: folders and archives of images; a row's `root` is an index into this list.
      several: whether a row has several references.
    """

    splits: dict[str, Split]
    findings: list[Finding]
    notes: list[str]
    folders: list[Pictures]
    several: bool


def read(settings: FileSettings, on_rows: Callable[[int], None] = lambda count: None) -> Contents:
    """Reads all of a task's rows once.

    Args:
      settings: the files, and how their rows become examples.
      on_rows: called now and then with the number of rows read since its last call.

    Raises:
      UserError: for files, settings and columns that contradict each other, and splits without examples.
    """
    sources: dict[str, RowSource] = {}
    folders: list[Pictures] = []
    files = files_of(settings.data)
    if settings.split is not None and len(files) > 1:
        raise UserError("DATA names a file for each split, and SPLIT a column for it; give one of them.")
    for name, paths in files.items():
        for path in paths:
            _read_file(settings, path, name, sources, folders, on_rows)
    for source in sources.values():
        source.finish()
    notes = [
        f"{len(source.doubled):,} rows of {name} have cells in quotation marks with doubled ones in them, which are read as text "
        f"({row_checks.first_named(source.doubled, len(source.doubled))}); if they enclose cells, set QUOTED = True"
        for name, source in sources.items()
        if source.doubled
    ]
    if TEST in sources and not len(sources[TEST].rows) and not sources[TEST].bad:
        del sources[TEST]
        notes.append("the test split has no targets, so it is ignored and another is made of the rows that have")
    findings = [finding for name, source in sources.items() for finding in _findings(name, source)]
    splits, shared = _divided(settings, sources)
    if VALIDATION in sources and TEST not in sources:
        halves = " and ".join(f"{len(splits[name]):,} examples for {name}" for name in (VALIDATION, TEST))
        notes.append(
            f"there is no test split, so the validation split is halved: {halves}; give a test split (DATA) to keep it whole"
        )
    return Contents(splits, findings + shared, notes, folders, any(source.several for source in sources.values()))


def files_of(data: str | Sequence[str] | Mapping[str, str | Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Returns the files of each published split.

    Raises:
      UserError: for a setting of another form.
    """
    by_split = {TRAIN: data} if isinstance(data, (str, tuple, list)) else data
    if not isinstance(by_split, Mapping) or TRAIN not in by_split or not set(by_split) <= {TRAIN, VALIDATION, TEST}:
        raise UserError(f"DATA is {data!r}; it takes a file, or files by 'train', 'validation' and 'test'.")
    several = lambda value: (value,) if isinstance(value, str) else tuple(value)
    return {split: several(by_split[split]) for split in (TRAIN, VALIDATION, TEST) if split in by_split}


def _read_file(
    settings: FileSettings,
    path: str,
    published: str,
    sources: dict[str, RowSource],
    folders: list[Pictures],
    on_rows: Callable[[int], None],
) -> None:
    table = table_files.open_table(path, settings.columns, settings.delimiter, settings.quoted, settings.encoding)
    if len(table.columns) == 1 and (other := next((sign for sign in "\t;|," if sign in table.columns[0]), None)):
        raise UserError(f"{path} has one column, {table.columns[0]!r}; is it separated by {other!r}? Set DELIMITER.")
    if settings.split is not None and settings.split not in table.columns:
        raise UserError(f"SPLIT is the column {settings.split!r}; {path} has {', '.join(table.columns)}.")
    source = sources.setdefault(published, RowSource())
    wanted = Template("TARGETS", settings.targets).columns
    if published == TEST and wanted and not set(wanted) & set(table.columns):
        return  # test files are often published without labels
    form = RowForm(settings, table, folders)
    counted = 0
    for counted, row in enumerate(table.rows(), 1):  # noqa: B007
        if counted % 1000 == 0:
            on_rows(1000)
        if isinstance(row, table_files.BadRow):
            target, problem = source, row.reason
        else:
            target = source if settings.split is None else _of_split_column(settings.split, path, row, sources)
            problem = form.add(row, target)
            if table.guessed_unquoted and any(doubled(cell) for cell in row.cells.values()):
                target.doubled.append(f"line {row.line} of {path}")
        if problem is not None:
            target.bad.append(f"line {row.line} of {path}: {problem}")
            target.bad_lines += row.lines
    on_rows(counted % 1000)
    if not counted:
        raise UserError(f"{path} has no rows below its header.")


def _of_split_column(column: str, path: str, row: table_files.Row, sources: dict[str, RowSource]) -> RowSource:
    name = str(table_rows.cell(row.cells, column) or "")
    split = table_files.split_of(name)
    if split is None:
        raise UserError(
            f"Line {row.line} of {path} has {name!r} in its column {column!r} (SPLIT), which names no split."
        )
    return sources.setdefault(split, RowSource())


def _findings(name: str, source: RowSource) -> Iterator[Finding]:
    total = len(source.rows) + source.bad_lines + len(source.empty)
    for kind, what, rows, count in (
        (row_checks.UNPARSED, "do not parse and are left out", source.bad, source.bad_lines),
        (row_checks.EMPTY, "have no input or no target and are left out", source.empty, len(source.empty)),
        (
            row_checks.LONG,
            f"take {LONG_ROW} lines or more; is a quotation mark left open?",
            source.long,
            len(source.long),
        ),
    ):
        yield Finding(kind, f"rows of {name} {what}", count, total, row_checks.first_named(rows, len(rows)))


# --- splits ---


def _divided(settings: FileSettings, sources: Mapping[str, RowSource]) -> tuple[dict[str, Split], list[Finding]]:
    """The task's splits, and a finding for each that shares rows with others."""
    for name, source in sources.items():
        if not len(source.rows):
            raise UserError(f"There are no examples in {name}{source.why_none()}; see DATA, SPLIT, INPUTS and TARGETS.")
    if TRAIN not in sources:
        raise UserError("There are no examples to train on; see DATA and SPLIT.")
    if VALIDATION in sources:
        parts = as_published() if TEST in sources else halved()
    else:
        test = TEST if TEST in sources else None
        parts = carved(settings.validation_share, test=test, test_share=settings.test_share)
    numbers = {
        name: np.flatnonzero((part.low <= sources[part.split].positions) & (sources[part.split].positions < part.high))
        for name, part in parts.items()
    }
    findings = []
    for name, others in ((TRAIN, (VALIDATION, TEST)), (VALIDATION, (TEST,))):
        twice = np.zeros(len(numbers[name]), bool)
        for kind in ("identities", "groups") if settings.group is not None else ("identities",):
            keys = {split: sources[parts[split].split].keys[kind][numbers[split]] for split in (name, *others)}
            twice |= np.isin(keys[name], np.concatenate([keys[other] for other in others]))
        count = int(twice.sum())
        rows = [sources[parts[name].split].rows[int(i)] for i in numbers[name][twice][: row_checks.NAMED_ROWS]]
        detail = row_checks.first_named([f"line {row['line']}, {row['inputs'][:60]!r}" for row in rows], count)
        what = f"examples of {name}{'' if settings.group is None else ', or others of their group,'} are in"
        fate = " and are left out" if settings.drop_shared else ""
        what = f"{what} {' or '.join(others)} too{fate}"
        findings.append(Finding(row_checks.SHARED, what, count, len(twice), detail))
        if settings.drop_shared:
            numbers[name] = numbers[name][~twice]
    splits = {name: Split(sources[part.split].rows, numbers[name]) for name, part in parts.items()}
    for name, split in splits.items():
        if not len(split):
            raise UserError(
                f"The split {name} has no examples; give it rows of its own (DATA), or a larger share "
                f"(VALIDATION_SHARE, TEST_SHARE) of the {len(sources[TRAIN].rows):,} rows."
            )
    return splits, findings


def first_of(rows: Iterator[table_files.Row | table_files.BadRow], count: int) -> list[table_files.Row]:
    """The first few rows that parse."""
    return list(itertools.islice((row for row in rows if isinstance(row, table_files.Row)), count))
