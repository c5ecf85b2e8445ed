"""Which rows people are shown: of every target in turn, where there are few."""

import itertools

import numpy as np

from adalink_jax.data.baselines import FEW_ANSWERS
from adalink_jax.data.user_files.file_splits import Split
from adalink_jax.data.user_files.row_store import StoredRow

READ = 5_000  # rows whose targets are looked at


def targets_of(rows: Split) -> dict[str, list[int]]:
    """The numbers of rows by target, the commonest first; empty if there are more than `FEW_ANSWERS` targets."""
    by_target: dict[str, list[int]] = {}
    for number in np.unique(np.linspace(0, len(rows) - 1, min(READ, len(rows))).round().astype(int)).tolist():
        by_target.setdefault(rows[number]["references"][0], []).append(number)
    if len(by_target) > FEW_ANSWERS:
        return {}
    return dict(sorted(by_target.items(), key=lambda item: -len(item[1])))


def of_each_target(rows: Split, count: int) -> list[StoredRow]:
    """`count` rows, evenly spaced: one of every target, a second of every target, and so on; or of all rows, if targets are many."""
    by_target = list(targets_of(rows).values()) or [list(range(len(rows)))]
    of_one = -(-count // len(by_target))
    spaced = [[numbers[i] for i in _spaced(len(numbers), of_one)] for numbers in by_target]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*spaced))
    return [rows[number] for number in itertools.islice((x for x in turns if x is not None), count)]


def _spaced(size: int, count: int) -> list[int]:
    return np.unique(np.linspace(0, size - 1, min(count, size)).round().astype(int)).tolist()
