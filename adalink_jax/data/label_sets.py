"""Sets of labels as targets: a row's labels sorted by name and joined, or `none` if it has none.

Invariant: a set has one text, so a model learns one order; scores compare sets, whatever the order of a prediction.
"""

import ast
import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from adalink_jax.errors import UserError

NO_LABEL = "none"
SEPARATORS = (",", ";", "|")


@dataclasses.dataclass(frozen=True)
class LabelSets:
    """How sets of labels are written.

    Attributes:
      separator: the character between two labels, after which a space is written.

    Raises:
      UserError: for a separator that is not one character.
    """

    separator: str = SEPARATORS[0]

    def __post_init__(self):
        if len(self.separator) != 1 or self.separator.isalnum() or self.separator.isspace():
            raise UserError(f"LABEL_SEPARATOR is {self.separator!r}; it must be one character, such as ';'.")

    def text(self, labels: Iterable[str]) -> str:
        """The target of a set of labels.

        Raises:
          TypeError: for a label that reads as two, or as no label.
        """
        names = sorted({label.strip() for label in labels} - {""})
        for name in names:
            if self.separator in name:
                raise TypeError(
                    f"its label {name!r} holds {self.separator!r}, which separates labels (LABEL_SEPARATOR)"
                )
            if name == NO_LABEL and len(names) > 1:
                raise TypeError(f"its labels have {NO_LABEL!r}, which stands for no label, beside others")
        return f"{self.separator} ".join(names) or NO_LABEL

    def split(self, text: str) -> list[str]:
        """The labels in a text, each once, sorted by name."""
        return sorted({label.strip() for label in text.split(self.separator)} - {"", NO_LABEL})


def items_of(value: Any) -> list[Any] | None:
    """The items of a cell that holds a list, or the text of one, as pandas and JSON write it in a CSV; None for other cells."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return list(value)
    if not (isinstance(value, str) and value.strip()[:1] == "[" and value.strip()[-1:] == "]"):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            items = read(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return items if isinstance(items, list) else None
    return None


def separator_for(texts: Sequence[str], are_sets: bool) -> str:
    """The first separator that occurs in texts, if each is a set of labels; that does not occur, if each is one label."""
    occurs = lambda sign: any(sign in text for text in texts)
    return next((sign for sign in SEPARATORS if occurs(sign) == are_sets), SEPARATORS[0])
