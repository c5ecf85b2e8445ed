"""Imports the modules that a configuration names. Those that only a run's folder names are imported with the user's consent.

A run's record (`config.gin`) may come from someone else, and opening it must not run their code. So modules outside this package are
imported only if the user's own gin files or flags name them too, or with `--trust_modules`.
"""

import ast
import dataclasses
import importlib
import os
import sysconfig
import traceback
import types
from collections.abc import Sequence

from gin import config_parser

from adalink_jax.configuration.flags import TRUST_MODULES, GinFlags
from adalink_jax.configuration.gin_sources import Source
from adalink_jax.errors import UserError

_PACKAGE = __name__.split(".")[0]
_DYNAMIC = "__gin__.dynamic_registration"
SETTING = "mixture_or_task_module"


@dataclasses.dataclass(frozen=True)
class Refusal:
    """What is imported without consent while a run's record is in gin's configuration.

    Attributes:
      run: path of the record.
      allowed: modules that the user's own files and flags name.
    """

    run: str
    allowed: frozenset[str]


_refusal: Refusal | None = None


def refusal() -> Refusal | None:
    """What is refused at present; None if every module may be imported."""
    return _refusal


def refuse(value: Refusal | None) -> None:
    """Sets what is refused from here on."""
    global _refusal
    _refusal = value


def import_modules(sources: Sequence[Source], flags: GinFlags) -> None:
    """Imports what gin files import, before gin does.

    Raises:
      UserError: for a module that fails, and for one that needs consent: then nothing has been imported.
    """
    run = next((source.path for source in sources if source.of_run), None)
    refuse(None if run is None or flags.trust_modules else Refusal(run, _named_by_user(sources, flags)))
    imports = [(source, statement) for source in sources for statement in _imports(source)]
    for source, statement in imports:
        if source.of_run:
            _check(statement.module, f"{source.path}, line {statement.location.line_num}")
    for source, statement in imports:
        if not statement.module.startswith("__gin__."):
            import_module(statement.module, f"{source.path}, line {statement.location.line_num}")


def import_module(name: str, place: str) -> types.ModuleType:
    """Imports a module that the configuration names.

    Args:
      name: of the module.
      place: where it is named, for errors.

    Raises:
      UserError: if it needs consent, is missing, or raises anything.
    """
    _check(name, place)
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # SystemExit too
        if isinstance(e, ModuleNotFoundError) and e.name and f"{name}.".startswith(f"{e.name}."):
            raise UserError(f"{place}: there is no module {name}, in {os.getcwd()} or installed.") from e
        message = " ".join(str(e).split())
        what = f"{type(e).__name__}: {message}" if message else type(e).__name__
        raise UserError(f"{place}: {name} cannot be imported: {what}{_line_of(e)}.") from e


def _check(name: str, place: str) -> None:
    if _refusal is None or is_ours(name) or name in _refusal.allowed:
        return
    what = "registers names dynamically, and so can call any function" if name == _DYNAMIC else f"imports {name}"
    raise UserError(
        f"{place}: the run {os.path.dirname(_refusal.run) or '.'} {what}, which runs code that is not this package's; if you trust "
        f"the run and that code, add {TRUST_MODULES} (`Predictor`: trust_modules=True)."
    )


def is_ours(name: str) -> bool:
    """Whether a module is this package's."""
    return name == _PACKAGE or name.startswith(f"{_PACKAGE}.")


def _imports(source: Source) -> list[config_parser.ImportStatement]:
    return [s for s in source.statements if isinstance(s, config_parser.ImportStatement)]


def _named_by_user(sources: Sequence[Source], flags: GinFlags) -> frozenset[str]:
    others = [source for source in sources if not source.of_run]
    named = {statement.module for source in others for statement in _imports(source)}
    for source in others:
        for statement in source.statements:
            if isinstance(statement, config_parser.BindingStatement):
                if (statement.arg_name or statement.selector).lower() == SETTING and isinstance(statement.value, str):
                    named.add(statement.value)
    for name, text in flags.bindings:
        if name.rpartition(".")[2].lower() == SETTING:
            try:
                named.add(ast.literal_eval(text))
            except (ValueError, SyntaxError):  # a macro
                continue
    return frozenset(named)


def _line_of(error: BaseException) -> str:
    """` (FILE, line N)`: where the user's code failed, rather than what it called."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}, line {error.lineno})"
    package = os.path.dirname(os.path.dirname(__file__))
    libraries = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), package, "<")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(libraries)]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
