"""`question: {question} context: {text}`: rows written as text."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from adalink_jax.errors import UserError

_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


class Template:
    """Text with names of columns in braces; `{{` and `}}` are braces.

    Attributes:
      columns: those that it names, in order.
    """

    def __init__(self, setting: str, text: str, known: Sequence[str] | None = None):
        """Args:
          setting: its macro, for errors.
          text: the template.
          known: columns of the table; None where they are not known yet.

        Raises:
          UserError: for a column that the table has not, and a brace without its other one.
        """
        self._parts: list[tuple[str, str | None]] = []  # text, and the column after it
        last, plain = 0, ""
        for found in _PART.finditer(text):
            plain += text[last : found.start()]
            last = found.end()
            if found[0] in ("{{", "}}"):
                plain += found[0][0]
            elif found[1] is None:
                raise UserError(f"{setting} is {text!r}, with a brace alone; write {{{{ and }}}} for braces.")
            elif known is not None and found[1] not in known:
                raise UserError(f"{setting} names the column {found[1]!r}; there are {', '.join(known)}.")
            else:
                self._parts.append((plain, found[1]))
                plain = ""
        self._parts.append((plain + text[last:], None))
        self.columns = tuple(dict.fromkeys(name for _, name in self._parts if name is not None))

    def text(self, row: Mapping) -> str:
        """What it says of a row; "" where all cells that it names are empty."""
        cells = {name: cell_text(row.get(name)) for name in self.columns}
        if cells and not any(cells.values()):
            return ""
        return "".join(plain + (cells[name] if name is not None else "") for plain, name in self._parts).strip()

    def texts(self, row: Mapping) -> list[str]:
        """The same for each value of a list, where it names one column alone and that holds a list."""
        value = row.get(self.columns[0]) if len(self.columns) == 1 else None
        if not isinstance(value, (list, tuple, np.ndarray)):
            return [text] if (text := self.text(row)) else []
        each = (self.text({self.columns[0]: one}) for one in value)
        return [text for text in each if text]


def cell_text(value) -> str:
    """A cell as text, without the spaces around it.

    Raises:
      TypeError: for a cell that is neither text nor a number.
    """
    if value is None:
        return ""
    if isinstance(value, (str, int, float, bool)):
        return str(value).strip()
    raise TypeError(f"a cell holds {type(value).__name__}, neither text nor a number")
