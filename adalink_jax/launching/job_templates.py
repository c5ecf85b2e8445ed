"""The templates of `launch/`, filled in by Jinja. A name that a template lacks is an error, and so is one left undefined."""

import functools
import json
import pathlib
import re
import shlex

import jinja2

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent


def launch_root() -> pathlib.Path:
    """The folder of the templates: inside an installed package, or beside it in a checkout."""
    inside = _PACKAGE / "launch"
    return inside if inside.is_dir() else _PACKAGE.parent / "launch"


def quote(word: str) -> str:
    """A word for a shell, in the quotes that are read most easily."""
    if "'" in word and not re.search(r'["$`\\!\n]', word):
        return f'"{word}"'
    return shlex.quote(word)


def line(words) -> str:
    """A command for a shell."""
    return " ".join(map(quote, words))


def fill(template: str, **values) -> str:
    """A template with its values. Filters: `sh` quotes a word, `line` a command, `yaml` any value.

    Raises:
      jinja2.UndefinedError: for a value that is missing.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(launch_root()),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "sh": quote,
        "line": line,
        "yaml": functools.partial(json.dumps, ensure_ascii=False),
    }  # JSON is YAML
    return environment.get_template(template).render(**values)
