"""t5x's flags: `--gin_file=FILE`, `--gin.NAME=VALUE`, `--gin_bindings='NAME = VALUE'`, `--gin_search_paths=A,B`."""

import ast
import dataclasses
import re
from collections.abc import Sequence

from adalink_jax.errors import UserError

_FILE, _BINDINGS, _PATHS, _BINDING = "--gin_file", "--gin_bindings", "--gin_search_paths", "--gin."


@dataclasses.dataclass(frozen=True)
class GinFlags:
    """What the command line says of gin.

    Attributes:
      files: gin files, as typed.
      bindings: `(name, text of the value)`, as typed; names are macros or parameters (`scope/function.parameter`).
      search_paths: further folders for gin files.
    """

    files: tuple[str, ...] = ()
    bindings: tuple[tuple[str, str], ...] = ()
    search_paths: tuple[str, ...] = ()

    def binding(self, name: str, text: str) -> "GinFlags":
        """With one more binding, which wins over the others."""
        return dataclasses.replace(self, bindings=(*self.bindings, (name, text)))

    def arguments(self) -> list[str]:
        """As a command line has them: what `parse_flags` reads."""
        return [
            *(f"{_PATHS}={path}" for path in self.search_paths),
            *(f"{_FILE}={file}" for file in self.files),
            *(f"{_BINDING}{name}={text}" for name, text in self.bindings),
        ]


def parse_flags(argv: Sequence[str]) -> tuple[GinFlags, list[str]]:
    """Takes gin's flags out of `argv`.

    Returns:
      The flags, and the arguments that are none of gin's.

    Raises:
      UserError: for a flag without a value, and for a value that no Python literal, `%MACRO` or `@reference` is.
    """
    files, bindings, paths, rest = [], [], [], []
    arguments = iter(argv)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag in (_FILE, _BINDINGS, _PATHS) or flag.startswith(_BINDING):
            if not equals:
                value = next(arguments, None)
                if value is None or value.startswith("--"):
                    raise UserError(f"{flag} needs a value: {flag}=...")
        if flag == _FILE:
            files.append(value)
        elif flag == _PATHS:
            paths += [path for path in value.split(",") if path]
        elif flag == _BINDINGS:
            name, equals, text = value.partition("=")
            if not equals:
                raise UserError(f"{_BINDINGS} takes 'NAME = VALUE', not {value!r}.")
            bindings.append((name.strip(), text.strip()))
        elif flag.startswith(_BINDING):
            bindings.append((flag.removeprefix(_BINDING), value))
        else:
            rest.append(argument)
    for name, text in bindings:
        _check_value(name, text)
    return GinFlags(tuple(files), tuple(bindings), tuple(paths)), rest


def _check_value(name: str, text: str) -> None:
    # References stand for something inside a literal: ('a', %B, @c()) reads as ('a', 0, 0).
    plain = re.sub(r"[%@][\w./]+(\(\))?", "0", text.strip())
    try:
        ast.literal_eval(plain)
    except (ValueError, SyntaxError) as e:
        if text in ("true", "false", "none", "null"):
            right = {"true": "True", "false": "False"}.get(text, "None")
            raise UserError(f"{_BINDING}{name}={text} must be {_BINDING}{name}={right}.") from e
        if re.match(r"[\w~./$-]", text) and not re.search(r"['\"]", text):
            typed = f"""{_BINDING}{name}="'{text}'\""""
            raise UserError(f"{text!r} is a string and needs quotes inside the shell's: {typed}") from e
        raise UserError(f"{_BINDING}{name}={text} cannot be read as a Python literal.") from e
