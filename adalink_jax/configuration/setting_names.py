"""What messages call settings: their names in gin files, or, for a caller in Python, the arguments that set them."""

import contextlib
import contextvars
import re
from collections.abc import Iterator, Mapping

_NAMES: contextvars.ContextVar[Mapping[str, str] | None] = contextvars.ContextVar("names", default=None)


@contextlib.contextmanager
def named_as(names: Mapping[str, str]) -> Iterator[None]:
    """While entered, `as_named` writes these names (setting or phrase -> what to write) in place of the settings'."""
    token = _NAMES.set(names)
    try:
        yield
    finally:
        _NAMES.reset(token)


def as_named(message: str) -> str:
    """A message with the names that its reader knows; what is quoted in it, as the reader typed it, stays."""
    if not (names := _NAMES.get()):
        return message
    pattern = "|".join(rf"(?<!')\b{re.escape(name)}\b(?!')" for name in names)
    return re.sub(pattern, lambda match: names[match[0]], message)
