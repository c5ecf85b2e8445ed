"""Loads gin files and flags into gin's configuration, and reports every failure in one sentence."""

import collections
import contextlib
import inspect
import re
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gin
from gin import config as gin_config

from adalink_jax import timings
from adalink_jax.configuration import gin_checks, gin_sources, modules, moved_selectors, value_types
from adalink_jax.configuration.flags import TRUST_MODULES, GinFlags
from adalink_jax.errors import UserError


@timings.phase("configuration")
def load(flags: GinFlags, extra_files: Sequence[str] = (), require_all: bool = True) -> None:
    """Replaces gin's configuration with that of the files and flags, checks it and locks it.

    Args:
      flags: files are parsed in the order typed, then the bindings; later ones win.
      extra_files: parsed before `flags.files`.
      require_all: see `gin_checks.check_macros`.

    Raises:
      UserError: for a missing file, a syntax error, an unknown configurable or parameter, an unset or unused macro, a value
        of another type than its parameter's annotation.
    """
    gin.clear_config()
    try:
        sources = gin_sources.read((*extra_files, *flags.files), flags.search_paths)
        modules.import_modules(sources, flags)
        with moved_selectors.accepted(), gin_sources.parsed_by_gin(sources), value_types.recorded_places():
            # A referenced configurable must exist by now; a %MACRO may still be set by a later file.
            gin.parse_config_files_and_bindings([*extra_files, *flags.files], None, finalize_config=False)
            # Checked after the files, which may import the modules of what the flags bind.
            problems = [gin_checks.explain_unknown(name) for name, _ in flags.bindings if "." in name]
            if not any(problems):
                gin.parse_config([f"{name} = {text}" for name, text in flags.bindings])
    except UserError:
        raise
    except SyntaxError as e:
        place = f"{e.filename or 'The command line'}, line {e.lineno}"
        raise UserError(f"{place}: {' '.join(str(e.msg).split())}: {(e.text or '').strip()}") from e
    except tokenize.TokenError as e:
        raise UserError("A bracket or a string is left open on the command line; close it.") from e
    except (ValueError, OSError, ImportError, KeyError) as e:  # KeyError: a name that several configurables have
        raise UserError(_explain(e)) from e
    if any(problems):
        raise UserError(next(filter(None, problems)))
    gin_checks.check_macros(flags, require_all, value_types.PLACES)
    value_types.check_literals()
    # gin.finalize() also locks, but refuses macros that a partial configuration leaves unset.
    gin_config._set_config_is_locked(True)


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """While entered, gin's configuration is separate; the previous one is restored afterwards."""
    stores: list[dict] = [gin_config._CONFIG, gin_config._SINGLETONS, gin_config._OPERATIVE_CONFIG, value_types.PLACES]
    saved = [{key: dict(x) if isinstance(x, dict) else x for key, x in store.items()} for store in stores]
    imports, locked, refusal = set(gin_config._IMPORTS), gin.config_is_locked(), modules.refusal()
    try:
        yield
    finally:
        gin.clear_config()
        for store, before in zip(stores, saved):
            store.update(before)
        gin_config._IMPORTS.update(imports)
        gin_config._set_config_is_locked(locked)
        modules.refuse(refusal)


def _explain(error: Exception) -> str:
    """gin's message and place in one line, with the nearest names if a binding is unknown."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    first, *rest = [line.strip() for line in text.split("\n") if line.strip() and line.strip() != "^"]
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


def consent_option() -> str:
    """`" --trust_modules"` if a command needs it to read the record of a run with this configuration; else ""."""
    bound = (text for name, text in bindings().items() if name.endswith(f".{modules.SETTING}"))
    named = [statement.module for statement in gin_config._IMPORTS] + [text.strip("'") for text in bound]
    return "" if all(name == "None" or modules.is_ours(name) for name in named) else f" {TRUST_MODULES}"


def used_settings() -> dict[str, str]:
    """The settings used so far, defaults included, in the form of `bindings`.

    If these are equal, two runs have the same settings, whichever macros and files set them.
    """
    return _flat(gin_checks.OPERATIVE_CONFIG)


def train_options(flags: GinFlags) -> dict[str, Any]:
    """The arguments of `train`, `train_pack` and `tune` that record the settings, and refuse unused ones."""

    def macros() -> dict[str, Any]:
        """gin's macros; those that are not plain values as their text."""
        plain = (bool, int, float, str, type(None))
        values = gin_checks.macros_set().items()
        return {name: value if isinstance(value, plain) else _literal(value) for name, value in sorted(values)}

    def config_text() -> str:
        gin_checks.check_all_used(flags)
        return operative_config()

    return {"settings": used_settings, "config_text": config_text, "macros": macros}


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


def _literal(value: object) -> str:
    """A value as gin text, with macros replaced by their values."""
    if isinstance(value, gin_config.ConfigurableReference):
        macros, name = gin_checks.macros_set(), gin_checks.macro_name(value)
        if name in macros:
            return _literal(macros[name])
        unique = len(gin_config._REGISTRY.matching_selectors(value.selector.split(".")[-1])) == 1
        return re.sub(r"(?:\w+\.)+(?=\w+(\(\))?$)", "", repr(value)) if unique else repr(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(k)}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        inner = ", ".join(map(_literal, value)) + ("," if len(value) == 1 and isinstance(value, tuple) else "")
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    return repr(value)


def _flat(config: gin_checks.Config) -> dict[str, str]:
    out = {}
    short = collections.Counter((scope, selector.split(".")[-1]) for scope, selector in config)
    for (scope, selector), parameters in config.items():
        if selector != gin_checks.MACRO:
            name = selector.split(".")[-1]
            name = selector if short[scope, name] > 1 else name  # two modules may have configurables of one name
            prefix = f"{scope}/{name}" if scope else name
            out |= {f"{prefix}.{parameter}": _literal(value) for parameter, value in parameters.items()}
    return dict(sorted(out.items()))
