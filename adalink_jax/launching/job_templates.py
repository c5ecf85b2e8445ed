"""Fills in the Jinja templates of `launch/`. Every value is quoted where it enters a text, so that no template can forget it.

`{{ value }}` in a shell template writes a text as one word, and a list or tuple as the words of a line, quoted for Bash on one line
(so that a comment cannot end early). A `{% set %}` block is a command for another shell: its values are quoted in it, and the block is
quoted as one word where it is used. Only `Shell` is written as it is, and only Python makes one. `{{ value }}` in a YAML template
writes JSON, which is YAML. Values must not stand within a template's own quotes (`tests/test_launch_injection.py`).
"""

import functools
import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence

import jinja2

from adalink_jax.configuration import gin_root


class Shell(str):
    """A line that enters a script as it is, since its author wrote it as one (SETUP), or since no shell reads it (`#SBATCH`)."""


def quote(word: str) -> str:
    """Quotes a word for a shell, with the quotes that are easiest to read; control characters need Bash."""
    if not word.isprintable():
        return f"$'{re.sub(r'.', _ansi, word, flags=re.DOTALL)}'"
    if "'" in word and not re.search(r'["$`\\!]', word):
        return f'"{word}"'
    return shlex.quote(word)


def _ansi(match: re.Match[str]) -> str:
    """A character between `$'` and `'`."""
    char = match[0]
    if char in "\\'":
        return f"\\{char}"
    if char.isprintable():
        return char
    if char in "\n\t":
        return {"\n": r"\n", "\t": r"\t"}[char]
    return "".join(f"\\x{byte:02x}" for byte in char.encode(errors="surrogateescape"))


def line(words: Iterable[str]) -> str:
    """A command as one shell line."""
    return " ".join(map(quote, words))


def after_setup(setup: Sequence[str], words: Sequence[str]) -> list[str]:
    """A command for a shell that runs the lines of SETUP and replaces itself with `words`; `words` alone without any."""
    return ["bash", "-c", "\n".join(["set -e", *setup, 'exec "$@"']), "bash", *words] if setup else [*words]


def with_variables(env: Mapping[str, str], secrets: Mapping[str, str], words: Iterable[str]) -> str:
    """A command as one shell line, with its variables; those of `secrets` are the contents of files."""
    variables = [f"{name}={quote(text)}" for name, text in env.items()]
    variables += [f'{name}="$(cat {quote(path)})"' for name, path in secrets.items()]
    return " ".join([*variables, line(words)])


def fill(template: str, **values: object) -> str:
    """Fills in a template.

    Args:
      template: name of the file in `launch/`, which ends with `.sh.jinja` or `.yaml.jinja`.
      **values: what the template uses.

    Raises:
      jinja2.UndefinedError: for a value that is missing.
      TypeError: for a value in a shell template that is neither a text, a whole number, a list nor a tuple.
    """
    return environment(template).get_template(template).render(**values)


@functools.cache
def environment(template: str) -> jinja2.Environment:
    """The environment of a template, in which its values are quoted."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(gin_root().parent / "launch"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_defined(_to_yaml if template.endswith(".yaml.jinja") else _to_shell),
    )


def _defined(write: Callable[[object], str]) -> Callable[[object], str]:
    def finalize(value: object) -> str:
        if isinstance(value, jinja2.Undefined):
            return str(value)  # raises UndefinedError
        return write(value)

    return finalize


def _to_shell(value: object) -> str:
    if isinstance(value, Shell):
        return value
    if isinstance(value, list | tuple):
        return line(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError(f"{value!r} in a shell template must be a text or a whole number, or a list of texts.")
    return quote(str(value))


def _to_yaml(value: object) -> str:
    # YAML takes some characters that JSON allows for line breaks, and has no surrogate pairs.
    escape = lambda match: match[0] if match[0].isprintable() else f"\\U{ord(match[0]):08x}"
    return re.sub(r"[^\x00-\x7e]", escape, json.dumps(value, ensure_ascii=False))
