"""What the descriptions of sweeps, comparisons and studies have in common: texts for gin, names that become folders, seeds."""

import collections
import re
from collections.abc import Iterable, Sequence

from adalink_jax.errors import UserError


def parse_text(text: object, where: str) -> str | tuple[str, str]:
    """Reads one text of a description.

    Args:
      text: a gin file, or a binding like 'RANK = 4'.
      where: the parameter that holds it, for the error.

    Returns:
      The file's name, or the binding's name and literal.

    Raises:
      UserError: if it is neither.
    """
    name, equals, value = text.partition("=") if isinstance(text, str) else ("", "", "")
    if equals and re.fullmatch(r"[\w./]+", name.strip()):
        return name.strip(), value.strip()
    if not equals and name.endswith(".gin"):
        return name
    raise UserError(f"{where} takes gin files and bindings like 'RANK = 4', not {text!r}.")


def split_texts(texts: Iterable[object], where: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Reads texts (see `parse_text`) into gin files and `(name, literal)` bindings."""
    parsed = [parse_text(text, where) for text in texts]
    return [x for x in parsed if isinstance(x, str)], [x for x in parsed if not isinstance(x, str)]


def slug(name: str) -> str:
    """Turns a name for people into a folder's: lower case, every other character an underscore."""
    return re.sub(r"\W+", "_", name).strip("_").lower()


def check_names(names: Iterable[str], where: str) -> None:
    """Refuses names that would share a folder, or have none.

    Raises:
      UserError: names the folder.
    """
    folders = collections.Counter(map(slug, names))
    shared = next((folder for folder, count in folders.items() if count > 1 or not folder), None)
    if shared is not None:
        raise UserError(f"{where}: names must differ in their letters and digits, and {shared!r} is not unique.")


def check_seeds(seeds: Sequence[int], where: str) -> None:
    """Refuses fewer seeds than an interval needs.

    Raises:
      UserError: if there are fewer than two.
    """
    if len(seeds) < 2:
        raise UserError(f"{where} has fewer than two seeds; an interval needs at least two, preferably five.")
