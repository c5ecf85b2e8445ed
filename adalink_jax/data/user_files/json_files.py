"""JSON files, row by row: JSONL, one object per line, and `.json`, an array of objects.

Nested objects are columns with dotted names, see `table_rows.column_names`: `{"answer": {"text": "a"}}` has the column `answer.text`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from adalink_jax.data.user_files.table_rows import (
    BadRow,
    Row,
    Table,
    check_columns,
    column_names,
    lines,
    strings,
    unclean,
    whole_text,
)
from adalink_jax.errors import UserError


def open_jsonl(path: epath.Path, encoding: str | None = None) -> Table:
    """See `table_files.open_table`."""

    def rows() -> Iterator[Row | BadRow]:
        for number, line in enumerate(lines(path, encoding), 1):
            if line.strip():
                yield _row(number, _parsed(line))

    names: dict[str, None] = {}
    for row in rows():
        names |= dict.fromkeys(column_names(row.cells)) if isinstance(row, Row) else {}
        check_columns(path, len(names))
    if not names and next(rows(), None) is None:
        raise UserError(f"{path} is empty.")
    return Table(str(path), tuple(names), rows)


def open_json(path: epath.Path, encoding: str | None = None) -> Table:
    """See `table_files.open_table`. It takes an array of objects; an object that holds one such array, and other things; or JSONL.

    The whole file is in memory. The number of a row is its place in the array, from 1.
    """
    text = whole_text(path, encoding)
    if not text.strip():
        raise UserError(f"{path} is empty.")
    value = _parsed(text)
    if isinstance(value, str):
        first, _, rest = text.lstrip().partition("\n")
        if rest.strip() and isinstance(_parsed(first), Mapping):
            return open_jsonl(path, encoding)
        raise UserError(f"{path} cannot be read: {value}; mend the file.")
    items = _items(value)
    if items is None:
        raise UserError(f"{path} holds neither an array of objects nor an object with one such array; write it as one.")
    rows = [_row(number, item) for number, item in enumerate(items, 1)]
    names = dict.fromkeys(name for row in rows if isinstance(row, Row) for name in column_names(row.cells))
    return Table(str(path), tuple(names), lambda: iter(rows))


def _items(value: Any) -> Sequence[Any] | None:
    """The array of objects that a JSON file holds."""
    arrays = [value] if isinstance(value, list) else [*value.values()] if isinstance(value, dict) else []
    arrays = [array for array in arrays if isinstance(array, list) and any(isinstance(item, dict) for item in array)]
    return arrays[0] if len(arrays) == 1 else None


def _row(number: int, value: Any) -> Row | BadRow:
    if isinstance(value, dict):
        return Row(number, value)
    return BadRow(number, value if isinstance(value, str) else "it is not a JSON object")


def _parsed(text: str) -> Any:
    """The JSON in a text; or why it cannot be read, in words: a str, as JSON's own strings are no rows."""
    if (reason := unclean([text])) is not None:
        return reason
    try:
        value = json.loads(text)
        return unclean(list(strings(value))) or ("it is not a JSON object" if isinstance(value, str) else value)
    except RecursionError:
        return "it is not JSON that can be read: it is nested too deeply"
    except ValueError as e:
        return f"it is not JSON ({e})"
