"""Loads gin files and flags into gin's configuration, and reports every failure in one sentence."""

import collections
import contextlib
import importlib.util  # noqa: F401  gin's reader of included files uses it without importing it
import inspect
import logging
import re
import tokenize
from collections.abc import Iterator, Mapping, Sequence

import gin
from gin import config as gin_config

from adalink_jax.configuration import gin_checks, gin_files, moved_selectors
from adalink_jax.configuration.flags import GinFlags
from adalink_jax.errors import UserError


def load(flags: GinFlags, extra_files: Sequence[str] = (), require_all: bool = True) -> None:
    """Replaces gin's configuration with that of the files and flags, checks it and locks it.

    Args:
      flags: files are parsed in the order typed, then the bindings; later ones win.
      extra_files: parsed before `flags.files`.
      require_all: see `gin_checks.check_macros`.

    Raises:
      UserError: for a missing file, a syntax error, an unknown configurable or parameter, an unset or unused macro.
    """
    gin.clear_config()
    for root in gin_files.roots(flags.search_paths):
        if root not in gin_config._LOCATION_PREFIXES:  # gin keeps the paths of earlier calls
            gin.add_config_file_search_path(root)
    paths = [gin_files.find(name, flags.search_paths) for name in (*extra_files, *flags.files)]
    logging.disable(logging.ERROR)  # gin logs each folder without the included file
    try:
        with moved_selectors.accepted():
            # A referenced configurable must exist by now; a %MACRO may still be set by a later file.
            gin.parse_config_files_and_bindings(paths, None, finalize_config=False)
            # Checked after the files, which may import the modules of what the flags bind.
            problems = [gin_checks.explain_unknown(name) for name, _ in flags.bindings if "." in name]
            if not any(problems):
                gin.parse_config([f"{name} = {text}" for name, text in flags.bindings])
    except SyntaxError as e:
        place = f"{e.filename or 'The command line'}, line {e.lineno}"
        raise UserError(f"{place}: {' '.join(str(e.msg).split())}: {(e.text or '').strip()}") from e
    except tokenize.TokenError as e:
        raise UserError(
            f"A bracket or a string is left open in {' or '.join(paths)} or an included file; close it."
        ) from e
    except (ValueError, OSError, ImportError) as e:
        raise UserError(_explain(e)) from e
    finally:
        logging.disable(logging.NOTSET)
    if any(problems):
        raise UserError(next(filter(None, problems)))
    gin_checks.check_macros(flags, require_all)
    # gin.finalize() also locks, but refuses macros that a partial configuration leaves unset.
    gin_config._set_config_is_locked(True)


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """While entered, gin's configuration is separate; the previous one is restored afterwards."""
    stores = (gin_config._CONFIG, gin_config._SINGLETONS, gin_config._OPERATIVE_CONFIG)
    saved = [{key: dict(x) if isinstance(x, dict) else x for key, x in store.items()} for store in stores]
    imports, locked = set(gin_config._IMPORTS), gin.config_is_locked()
    try:
        yield
    finally:
        gin.clear_config()
        for store, before in zip(stores, saved):
            store.update(before)
        gin_config._IMPORTS.update(imports)
        gin_config._set_config_is_locked(locked)


def _explain(error: Exception) -> str:
    """gin's message and place in one line, with the nearest names if a binding is unknown."""
    first, *rest = [line.strip() for line in str(error).split("\n") if line.strip() and line.strip() != "^"]
    place = next(
        (line.removeprefix("In ").replace('file "', "").replace('",', ",") for line in rest if "line" in line), ""
    )
    statement = rest[-1] if place else ""
    problem = gin_checks.explain_unknown(statement.split("=")[0].strip()) if "=" in statement else None
    if problem is None and (reference := re.search(r"No configurable matching reference '@(?:\w+/)*([\w.]+)", first)):
        problem = (
            f"there is nothing called {reference[1]}{gin_checks.nearest(reference[1], gin_checks.configurables())}."
        )
    return f"{place}: {problem or first}" if place else problem or first


def original_message(error: BaseException) -> str:
    """The first line of an error's message, without the call sites that gin appends to it."""
    return str(error).split("\n")[0]


def operative_config() -> str:
    """The settings used so far, as text that gin can parse: a run's `config.gin`."""
    return gin.operative_config_str()


def bindings() -> dict[str, str]:
    """All bindings as `{"scope/function.parameter": literal}`, with macros replaced by their values."""
    return _flat(gin_checks.CONFIG)


def default_of(name: str) -> str | None:
    """The literal of a parameter's default, by the parameter's name in `bindings`; None without a default or such a parameter."""
    selector, _, parameter_name = name.split("/")[-1].rpartition(".")
    try:
        configurable = gin_config._REGISTRY.get_match(selector)
        parameter = configurable and inspect.signature(configurable.wrapped).parameters[parameter_name]
    except (KeyError, ValueError, TypeError):
        return None
    return None if parameter is None or parameter.default is parameter.empty else repr(parameter.default)


def as_in_0_1_0(settings: Mapping[str, str]) -> dict[str, str]:
    """Settings as version 0.1.0 recorded them for resuming: without EVAL_PERIOD, which decides among which steps the best is chosen."""
    return {name: value for name, value in settings.items() if not name.endswith(".eval_period")}


def used_settings() -> dict[str, str]:
    """The settings used so far, defaults included, in the form of `bindings`.

    If these are equal, two runs have the same settings, whichever macros and files set them.
    """
    return _flat(gin_checks.OPERATIVE_CONFIG)


def require(needed: dict[str, str]) -> None:
    """Checks that parameters are bound.

    Args:
      needed: parameter -> what to add if it is not bound, for the error.

    Raises:
      UserError: for the first parameter that is not bound.
    """
    bound = bindings()
    for parameter, remedy in needed.items():
        if parameter not in bound:
            raise UserError(f"The configuration sets no {parameter}; add {remedy}.")


def _flat(config: gin_checks.Config) -> dict[str, str]:
    macros = gin_checks.macros_set()

    def literal(value: object) -> str:
        if isinstance(value, gin_config.ConfigurableReference):
            name = gin_checks.macro_name(value)
            if name in macros:
                return literal(macros[name])
            unique = len(gin_config._REGISTRY.matching_selectors(value.selector.split(".")[-1])) == 1
            return re.sub(r"(?:\w+\.)+(?=\w+(\(\))?$)", "", repr(value)) if unique else repr(value)
        if isinstance(value, dict):
            return "{" + ", ".join(f"{literal(k)}: {literal(v)}" for k, v in value.items()) + "}"
        if isinstance(value, (list, tuple)):
            inner = ", ".join(map(literal, value)) + ("," if len(value) == 1 and isinstance(value, tuple) else "")
            return f"[{inner}]" if isinstance(value, list) else f"({inner})"
        return repr(value)

    out = {}
    short = collections.Counter((scope, selector.split(".")[-1]) for scope, selector in config)
    for (scope, selector), parameters in config.items():
        if selector != gin_checks.MACRO:
            name = selector.split(".")[-1]
            name = selector if short[scope, name] > 1 else name  # two modules may have configurables of one name
            prefix = f"{scope}/{name}" if scope else name
            out |= {f"{prefix}.{parameter}": literal(value) for parameter, value in parameters.items()}
    return dict(sorted(out.items()))
