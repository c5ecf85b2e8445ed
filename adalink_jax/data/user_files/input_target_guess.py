"""Guesses which columns of a table are the input and which is the target, from their names and contents."""

import re
from collections.abc import Sequence
from typing import Any

from adalink_jax.data.baselines import FEW_ANSWERS, as_numbers
from adalink_jax.data.user_files.table_rows import cell
from adalink_jax.data.user_files.text_templates import cell_text
from adalink_jax.errors import UserError

TARGETS = (
    "target", "targets", "label", "labels", "answer", "answers", "output", "outputs", "completion", "response", "summary",
    "caption", "captions", "alt", "translation", "class", "category", "tags", "sentiment", "gold", "score", "rating", "stars", "price",
)  # fmt: skip
INPUTS = (
    "instruction", "question", "query", "prompt", "input", "inputs", "source_text", "text", "sentence", "sentence1", "sentence2",
    "premise", "hypothesis", "context", "passage", "document", "article", "review", "title", "content", "body",
)  # fmt: skip
IDS = re.compile(r"(.*_)?(id|idx|index|no|nr|number)|unnamed: \d+", re.IGNORECASE)

Cells = dict[str, Any]  # the cells of a row by column


def column_texts(rows: Sequence[Cells], name: str) -> list[str]:
    """The text and numbers of a column, with the items of lists in sequence; empty if it holds anything else."""
    texts = []
    for row in rows:
        value = cell(row, name)
        for item in value if isinstance(value, list) else (value,):
            try:
                texts.append(cell_text(item))
            except TypeError:
                return []
    return texts


def guess_targets(
    path: str, columns: Sequence[str], rows: Sequence[Cells], inputs: str | None, has_image: bool, doubts: list[str]
) -> str:
    """The template of the targets: a column with a target's name; else the one with the fewest values, of up to 50; else the
    only one of numbers; else the only one that is neither an input nor an id.

    Args:
      path: the table, for error messages.
      columns: columns that may be the target.
      rows: the first rows.
      inputs: the template of the inputs, if the user gave it.
      has_image: whether rows have a picture, which may be the whole input.
      doubts: a guess that had alternatives is added.

    Raises:
      UserError: if it is not clear which.
    """
    in_inputs = re.findall(r"\{([^{}]*)\}", inputs or "")
    columns = [name for name in columns if name not in in_inputs]
    named = [name for known in TARGETS for name in columns if known in name.lower().split(".")]
    if named:
        if len(named) > 1:
            doubts.append(f"TARGETS is {named[0]}; it could be {' or '.join(named[1:])}; override with --targets")
        return f"{{{named[0]}}}"
    if has_image and len(columns) == 1:
        doubts.append(f"TARGETS is {columns[0]}, the only column beside the picture; override with --targets")
        return f"{{{columns[0]}}}"
    texts = {
        name: of_column
        for name in columns
        if _ends(name) not in INPUTS and len(set(of_column := column_texts(rows, name))) > 1 and all(of_column)
    }
    values = {name: len(set(of_column)) for name, of_column in texts.items()}
    classes = [name for name in texts if values[name] <= min(FEW_ANSWERS, len(texts[name]) // 2)]
    others = [name for name in texts if not are_ids(name, texts[name])]
    numbers = [name for name in others if as_numbers(texts[name]) is not None]
    if classes:
        guess, why = min(classes, key=values.__getitem__), "which has the fewest values"
    elif len(numbers) == 1:
        guess, why = numbers[0], "the only one of numbers"
    elif len(others) == 1 and (len(columns) > 1 or inputs or has_image):
        guess, why = others[0], "the only one that is not an input"
    else:
        raise UserError(
            f"It is not clear which column of {path} is to be predicted; name it: --targets '{{COLUMN}}', of "
            f"{', '.join(columns)}."
        )
    doubts.append(f"TARGETS is {guess}, {why}; no column has the name of a target; override with --targets")
    return f"{{{guess}}}"


def guess_inputs(columns: Sequence[str], rows: Sequence[Cells], has_image: bool, doubts: list[str]) -> str:
    """The template of the inputs: columns with an input's name; else the longest text.

    Raises:
      UserError: if no column has text, and there are no images.
    """
    named = [name for name in columns if _ends(name) in INPUTS and set(name.lower().split(".")).isdisjoint(TARGETS)]
    if not named and has_image:
        if columns:
            doubts.append(
                f"INPUTS names no column; there are {', '.join(columns)}; to give the model some, use --inputs"
            )
        return "what is this?"
    if not named:
        lengths = {name: sum(map(len, texts)) / len(texts) for name in columns if (texts := column_texts(rows, name))}
        if not lengths:
            raise UserError("It is not clear which columns are the input; name them: --inputs 'text: {COLUMN}'.")
        named = [max(lengths, key=lengths.__getitem__)]
        if len(lengths) > 1:
            doubts.append(
                f"INPUTS is {named[0]}, the longest text; no column has the name of an input; override with --inputs"
            )
    return f"{{{named[0]}}}" if len(named) == 1 else " ".join(f"{name}: {{{name}}}" for name in named)


def _ends(name: str) -> str:
    """The last part of a dotted column's name, in lower case."""
    return name.lower().rpartition(".")[2]


def are_ids(name: str, texts: Sequence[str]) -> bool:
    """Whether a column numbers the rows, by its name or because its whole numbers increase."""
    if IDS.fullmatch(name):
        return True
    if not all(text.isdecimal() for text in texts):
        return False
    numbers = [int(text) for text in texts]
    return all(a < b for a, b in zip(numbers, numbers[1:]))
