"""Fills in the Jinja templates of `launch/`. A template that uses an undefined value is an error."""

import functools
import json
import re
import shlex
from collections.abc import Iterable

import jinja2

from adalink_jax.configuration import gin_root


def quote(word: str) -> str:
    """Quotes a word for a shell, with the quotes that are easiest to read."""
    if "'" in word and not re.search(r'["$`\\!\n]', word):
        return f'"{word}"'
    return shlex.quote(word)


def line(words: Iterable[str]) -> str:
    """A command as one shell line."""
    return " ".join(map(quote, words))


def fill(template: str, **values: object) -> str:
    """Fills in a template, which may use the filters `sh` (quotes a word), `line` (a command as one line) and `yaml` (any value).

    Args:
      template: name of the file in `launch/`.
      **values: what the template uses.

    Raises:
      jinja2.UndefinedError: for a value that is missing.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(gin_root().parent / "launch"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    to_yaml = functools.partial(json.dumps, ensure_ascii=False)  # JSON is YAML
    environment.filters |= {"sh": quote, "line": line, "yaml": to_yaml}
    return environment.get_template(template).render(**values)
