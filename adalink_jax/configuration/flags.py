"""t5x's flags: `--gin_file=FILE`, `--gin.NAME=VALUE`, `--gin_bindings='NAME = VALUE'`, `--gin_search_paths=A,B`; `--trust_modules`."""

import ast
import dataclasses
import re
from collections.abc import Sequence

from adalink_jax.errors import UserError

TRUST_MODULES = "--trust_modules"
_FILE, _BINDINGS, _PATHS, _BINDING = "--gin_file", "--gin_bindings", "--gin_search_paths", "--gin."


@dataclasses.dataclass(frozen=True)
class GinFlags:
    """gin's part of a command line.

    Attributes:
      files: gin files, as typed.
      bindings: `(name, text of the value)`, as typed; a name is a macro or a parameter (`scope/function.parameter`).
      search_paths: additional folders in which gin files are looked up.
      trust_modules: whether the modules that a run's record names may be imported, see `modules`.
    """

    files: tuple[str, ...] = ()
    bindings: tuple[tuple[str, str], ...] = ()
    search_paths: tuple[str, ...] = ()
    trust_modules: bool = False

    def binding(self, name: str, text: str) -> "GinFlags":
        """These flags with one more binding, which overrides earlier ones."""
        return dataclasses.replace(self, bindings=(*self.bindings, (name, text)))

    def arguments(self) -> list[str]:
        """The flags as command-line arguments, which `parse_flags` reads."""
        return [
            *(f"{_PATHS}={path}" for path in self.search_paths),
            *(f"{_FILE}={file}" for file in self.files),
            *(f"{_BINDING}{name}={text}" for name, text in self.bindings),
            *([TRUST_MODULES] if self.trust_modules else []),
        ]


def parse_flags(argv: Sequence[str]) -> tuple[GinFlags, list[str]]:
    """Separates gin's flags from the other arguments.

    Returns:
      The flags, and all other arguments.

    Raises:
      UserError: for a flag without a value, and for a value that is not a Python literal, `%MACRO` or `@reference`.
    """
    files, bindings, paths, rest, trust_modules = [], [], [], [], False
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
        elif argument == TRUST_MODULES:
            trust_modules = True
        else:
            rest.append(argument)
    for name, text in bindings:
        _check_value(name, text)
    return GinFlags(tuple(files), tuple(bindings), tuple(paths), trust_modules), rest


def _check_value(name: str, text: str) -> None:
    # gin allows references inside literals; ('a', %B, @c()) is checked as ('a', 0, 0).
    plain = re.sub(r"[%@][\w./]+(\(\))?", "0", text.strip())
    try:
        ast.literal_eval(plain)
    except (
        ValueError,
        SyntaxError,
        TypeError,
        RecursionError,
        MemoryError,
    ) as e:  # the last three for {[]: 1} and ((((...
        if text in ("true", "false", "none", "null"):
            right = {"true": "True", "false": "False"}.get(text, "None")
            raise UserError(f"{_BINDING}{name}={text} must be {_BINDING}{name}={right}.") from e
        if re.match(r"[\w~./$-]", text) and not re.search(r"['\"]", text):
            typed = f"""{_BINDING}{name}="'{text}'\""""
            raise UserError(f"{text!r} is a string and needs quotes inside the shell's: {typed}") from e
        raise UserError(f"{_BINDING}{name}={text} cannot be read as a Python literal.") from e
