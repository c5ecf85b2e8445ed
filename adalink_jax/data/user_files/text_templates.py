"""Templates that write rows as text: `question: {question} context: {text}`."""

import datetime
import decimal
import re
from collections.abc import Mapping
from typing import Any

from adalink_jax.data.user_files.table_rows import Table, Unreadable, cell, iso_text
from adalink_jax.errors import UserError

SHOWN = 20  # columns in a message
_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class Template:
    """Text with names of columns in braces; `{{` and `}}` are literal braces.

    Attributes:
      columns: the columns that it names, in order.
    """

    def __init__(self, setting: str, text: str, table: Table | None = None):
        """Args:
          setting: its macro, for error messages.
          text: the template.
          table: the table whose columns it names; None skips the check.

        Raises:
          UserError: for a column that the table lacks, and for an unmatched brace.
        """
        self._parts: list[tuple[str, str | None]] = []  # literal text, and the column after it
        last, plain = 0, ""
        for part in _PART.finditer(text):
            plain += text[last : part.start()]
            last = part.end()
            if part[0] in ("{{", "}}"):
                plain += part[0][0]
            elif part[1] is None:
                raise UserError(f"{setting} is {text!r}, with a brace alone; write {{{{ and }}}} for braces.")
            elif table is not None and part[1] not in table.columns:
                columns = ", ".join(table.columns[:SHOWN]) + ", ..." * (len(table.columns) > SHOWN)
                raise UserError(
                    f"{setting} names the column {part[1]!r}; {table.path} has the columns {columns or '(none)'}."
                )
            else:
                self._parts.append((plain, part[1]))
                plain = ""
        self._parts.append((plain + text[last:], None))
        self.columns = tuple(dict.fromkeys(name for _, name in self._parts if name is not None))

    def text(self, row: Mapping[str, Any]) -> str:
        """Writes a row; "" if all cells that the template names are empty.

        Raises:
          TypeError: for a cell that is neither text nor a number.
        """
        cells = {name: cell_text(cell(row, name)) for name in self.columns}
        if cells and not any(cells.values()):
            return ""
        return "".join(plain + (cells[name] if name is not None else "") for plain, name in self._parts).strip()


def is_missing(value: object) -> bool:
    """Whether a cell is null or NaN."""
    return value is None or (isinstance(value, (float, decimal.Decimal)) and value != value)


def cell_text(value: object) -> str:
    """A cell as text, without the spaces around it, a date as ISO 8601; "" for a missing value.

    Raises:
      TypeError: for a cell that is neither text, a number nor a date.
    """
    if is_missing(value):
        return ""
    if isinstance(value, (str, int, float, bool)):
        return str(value).strip()
    if isinstance(value, (datetime.date, datetime.time)):
        return iso_text(value)
    if isinstance(value, decimal.Decimal):
        return f"{value:f}"
    kind = value.kind if isinstance(value, Unreadable) else type(value).__name__
    raise TypeError(f"a cell holds {kind}, neither text nor a number")
