"""Reads gin files before gin does: their text, what they include and which modules they import. Nothing that they name runs.

gin then parses the very text that was read here (`parsed_by_gin`), so what was checked is what runs. A byte order mark is dropped.
"""

import contextlib
import dataclasses
import functools
import io
import os
import pathlib
import tokenize
from collections.abc import Iterator, Sequence
from typing import Any

from gin import config as gin_config
from gin import config_parser

from adalink_jax.configuration import gin_files
from adalink_jax.configuration.flags import GinFlags
from adalink_jax.errors import UserError

RUN_CONFIG = "config.gin"  # the record of a run in its folder
_PARAMETERS = "\n# Parameters for "  # what gin writes below the macros
MOST_BYTES = 16 * 2**20
MOST_FILES = 200  # in all, so that files that include others many times end soon


@dataclasses.dataclass(frozen=True)
class Source:
    """A gin file.

    Attributes:
      name: as typed or included.
      path: where it was found.
      text: its contents.
      of_run: whether it is the record of a run, or included by one.
    """

    name: str
    path: str
    text: str
    of_run: bool

    @property
    def statements(self) -> Sequence[Any]:
        """The statements of gin's parser. The values in them are literals, or texts in place of references."""
        return _statements(self.path, self.text)


def read(names: Sequence[str], search_paths: Sequence[str]) -> list[Source]:
    """The files called `names` and all that they include.

    Raises:
      UserError: for a file that is missing, is not a text, cannot be parsed, or includes itself; with the chain of includes.
      SyntaxError: as gin's parser raises it.
    """
    sources: list[Source] = []

    def add(name: str, chain: tuple[tuple[str, int], ...], of_run: bool) -> None:
        where = "".join(f"{path}, line {line}: " for path, line in chain)
        try:
            path = gin_files.find(name, search_paths)
        except UserError as e:
            raise UserError(f"{where}{e}") from None
        if any(os.path.samefile(path, including) for including, _ in chain):
            raise UserError(f"{where}{path} includes itself; remove one of these includes.")
        if len(sources) == MOST_FILES:
            raise UserError(f"{where}more than {MOST_FILES} files are included; remove includes.")
        source = Source(name, path, _text(path), of_run or os.path.basename(path) == RUN_CONFIG)
        sources.append(source)
        for statement in source.statements:
            if isinstance(statement, config_parser.IncludeStatement):
                add(statement.filename, (*chain, (path, statement.location.line_num)), source.of_run)

    for name in names:
        add(name, (), False)
    return sources


def recorded_macros(config: str, path: str) -> dict[str, bool | int | float | str]:
    """gin's macros in the record of a run: name -> value, or the text of one that is not a number, a truth value or a string.

    Args:
      config: the contents of `config.gin`.
      path: its path, for errors.

    Raises:
      UserError, SyntaxError: if it cannot be read.
    """
    statements = Source(RUN_CONFIG, path, config.partition(_PARAMETERS)[0], of_run=True).statements
    bound = {x.selector: x.value for x in statements if isinstance(x, config_parser.BindingStatement)}
    is_plain = lambda value: isinstance(value, (bool, int, float, str))
    return {name: value if is_plain(value) else repr(value) for name, value in bound.items()}


def bound(flags: GinFlags, parameter: str) -> tuple[str, Any] | None:
    """Where a parameter has its value from, by the text of the files and flags; later bindings win, and those with a scope do not count.

    Args:
      flags: of a command.
      parameter: `function.parameter`.

    Returns:
      The macro at the end of the chain of macros, or the parameter itself, and the value that is bound to it: a literal, or the text of a
      reference. None if nothing is bound.

    Raises:
      UserError, SyntaxError: see `read`.
    """
    values: dict[str, Any] = {}
    sources = iter(read(flags.files, flags.search_paths))

    def take(statements: Sequence[Any]) -> None:
        for statement in statements:
            if isinstance(statement, config_parser.IncludeStatement):
                take(next(sources).statements)  # `read` has them in this order
            elif isinstance(statement, config_parser.BindingStatement) and not statement.scope:
                short = statement.selector.split(".")[-1]
                values[f"{short}.{statement.arg_name}" if statement.arg_name else short] = statement.value

    for _ in flags.files:
        take(next(sources).statements)
    for name, text in flags.bindings:
        take(_statements("The command line", f"{name} = {text}"))
    name = parameter
    for _ in range(len(values)):
        value = values.get(name)
        if not (isinstance(value, str) and value.startswith("%")):
            break
        name = value.removeprefix("%")
    return (name, values[name]) if name in values else None


@contextlib.contextmanager
def parsed_by_gin(sources: Sequence[Source]) -> Iterator[None]:
    """While entered, gin reads these files, by their names, and no others."""
    texts = {source.name: source for source in sources}
    saved = gin_config._FILE_READERS, gin_config._LOCATION_PREFIXES
    gin_config._FILE_READERS = [(lambda name: _Text(texts[name].path, texts[name].text), texts.__contains__)]
    gin_config._LOCATION_PREFIXES = [""]
    try:
        yield
    finally:
        gin_config._FILE_READERS, gin_config._LOCATION_PREFIXES = saved


class _Text(io.StringIO):
    """A text with the name that gin's messages show."""

    def __init__(self, name: str, text: str):
        super().__init__(text)
        self.name = name


class _References(config_parser.ParserDelegate):
    """Makes texts of references, which gin's own delegate would look up."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Any:
        return f"@{scoped_configurable_name}{'()' if evaluate else ''}"

    def macro(self, macro_name: str) -> Any:
        return f"%{macro_name}"


@functools.lru_cache(maxsize=MOST_FILES)
def _statements(path: str, text: str) -> tuple[Any, ...]:
    try:
        parser = config_parser.ConfigParser(_Text(path, text), _References())
        try:
            return tuple(parser)
        except (TypeError, ValueError, RecursionError, MemoryError) as e:
            token = parser.current_token
            line = token.start[0] if token else 1
            why = "brackets are nested too deeply" if isinstance(e, (RecursionError, MemoryError)) else e
            raise UserError(f"{path}, line {line}: the value cannot be read: {why}.") from None
    except tokenize.TokenError as e:
        raise UserError(f"A bracket or a string is left open in {path}; close it.") from e


def _text(path: str) -> str:
    if (size := os.path.getsize(path)) > MOST_BYTES:
        raise UserError(f"{path} has {size:,} bytes, more than a gin file has; give another file.")
    try:
        return pathlib.Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError(f"{path} is not a text in UTF-8 (byte {e.start}); save it as UTF-8.") from e
