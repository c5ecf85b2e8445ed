"""Parsing gin files and flags into gin's configuration, with every failure in one sentence."""

import collections
import contextlib
import importlib.util  # noqa: F401  gin's reader of included files uses it without importing it
import inspect
import logging
import re
import tokenize
from collections.abc import Iterator, Sequence

import gin
from gin import config as gin_config

from adalink_jax.configuration import gin_checks, gin_files, moved_selectors
from adalink_jax.configuration.flags import GinFlags
from adalink_jax.errors import UserError


def load(flags: GinFlags, extra_files: Sequence[str] = (), require_all: bool = True) -> None:
    """Replaces gin's configuration by that of the files and flags, checked and locked.

    Args:
      flags: files in the order typed, later ones winning, then the bindings.
      extra_files: parsed before the typed ones.
      require_all: see `checks.check_macros`.

    Raises:
      UserError: for a missing file, a syntax error, an unknown configurable or parameter, a macro unset or unused.
    """
    gin.clear_config()
    for root in gin_files.roots(flags.search_paths):
        if root not in gin_config._LOCATION_PREFIXES:  # gin keeps those of earlier calls
            gin.add_config_file_search_path(root)
    paths = [gin_files.find(name, flags.search_paths) for name in (*extra_files, *flags.files)]
    logging.disable(logging.ERROR)  # gin logs each place where an included file is not
    try:
        # Configurables that a reference names must exist; %MACROs may still be set by a later file.
        with moved_selectors.rewriting():
            gin.parse_config_files_and_bindings(paths, None, finalize_config=False)
        # Files may have imported the modules of what the flags bind.
        problems = [gin_checks.explain_unknown(name) for name, _ in flags.bindings if "." in name]
        if not any(problems):
            gin.parse_config([moved_selectors.current(f"{name} = {text}") for name, text in flags.bindings])
    except SyntaxError as e:
        place = f"{e.filename or 'The command line'}, line {e.lineno}"
        raise UserError(f"{place}: {' '.join(str(e.msg).split())}: {(e.text or '').strip()}") from e
    except tokenize.TokenError as e:
        raise UserError(
            f"A bracket or a string is left open in {' or '.join(paths)}, or in a file that it includes."
        ) from e
    except (ValueError, OSError, ImportError) as e:
        raise UserError(_explain(e)) from e
    finally:
        logging.disable(logging.NOTSET)
    if any(problems):
        raise UserError(next(filter(None, problems)))
    gin_checks.check_macros(flags, require_all)
    # gin.finalize() would lock it too, but refuses macros that a partial configuration leaves open.
    gin_config._set_config_is_locked(True)


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """A configuration of its own; what was configured before is there again afterwards."""
    kept = (gin_config._CONFIG, gin_config._SINGLETONS, gin_config._OPERATIVE_CONFIG)
    saved = [{key: dict(x) if isinstance(x, dict) else x for key, x in each.items()} for each in kept]
    imports, locked = set(gin_config._IMPORTS), gin.config_is_locked()
    try:
        yield
    finally:
        gin.clear_config()
        for each, before in zip(kept, saved):
            each.update(before)
        gin_config._IMPORTS.update(imports)
        gin_config._set_config_is_locked(locked)


def _explain(error: Exception) -> str:
    """gin's message and place, on one line; with the nearest names where a binding is unknown."""
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
    """An error's own sentence, without the places that gin appends while the error passes through it."""
    return str(error).split("\n")[0]


def operative_config() -> str:
    """The settings that were used so far, as text that gin parses again: a run's `config.gin`."""
    return gin.operative_config_str()


def bindings() -> dict[str, str]:
    """What is bound, as `{"scope/function.parameter": literal}`, with macros replaced by their values."""
    return _flat(gin_checks.config())


def default_of(name: str) -> str | None:
    """The literal of a parameter's own default, by its name in `bindings`; None if it has none, or there is no such parameter."""
    try:
        configurable = gin_config._REGISTRY.get_match(name.split("/")[-1].rpartition(".")[0])
        parameter = inspect.signature(configurable.wrapped).parameters[name.rpartition(".")[2]]
    except (KeyError, ValueError, AttributeError, TypeError):
        return None
    return None if parameter.default is parameter.empty else repr(parameter.default)


def used_settings() -> dict[str, str]:
    """What was used so far, defaults included, in the form of `bindings`.

    Two runs mean the same if these are equal, whatever macros and files they were written with.
    """
    return _flat(gin_checks.operative_config())


def require(needed: dict[str, str]) -> None:
    """Refuses a configuration that lacks a part.

    Args:
      needed: parameter that must be bound -> what binds it, for the error.

    Raises:
      UserError: names the part.
    """
    bound = bindings()
    for parameter, remedy in needed.items():
        if parameter not in bound:
            raise UserError(f"The configuration sets no {parameter}; add {remedy}.")


def _flat(config: dict) -> dict[str, str]:
    macros = gin_checks.macros_set()

    def literal(value):
        if isinstance(value, gin_config.ConfigurableReference):
            name = gin_checks.macro_name(value)
            if name in macros:
                return literal(macros[name])
            short = re.sub(r"(?:\w+\.)+(?=\w+(\(\))?$)", "", repr(value))  # however much of the module was written
            one = len(gin_config._REGISTRY.matching_selectors(re.search(r"\w+(?=\W*$)", short)[0])) == 1
            return short if one else repr(value)
        if isinstance(value, dict):
            return "{" + ", ".join(f"{literal(k)}: {literal(v)}" for k, v in value.items()) + "}"
        if isinstance(value, (list, tuple)):
            inner = ", ".join(map(literal, value)) + ("," if len(value) == 1 and isinstance(value, tuple) else "")
            return f"[{inner}]" if isinstance(value, list) else f"({inner})"
        return repr(value)

    out = {}
    short = collections.Counter((scope, selector.split(".")[-1]) for scope, selector in config)
    for (scope, selector), parameters in config.items():
        if not gin_checks.is_macro(selector):
            name = selector.split(".")[-1]
            name = selector if short[scope, name] > 1 else name  # two modules may have one name
            prefix = f"{scope}/{name}" if scope else name
            out |= {f"{prefix}.{parameter}": literal(value) for parameter, value in parameters.items()}
    return dict(sorted(out.items()))
