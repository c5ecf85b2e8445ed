"""Checks of a parsed configuration: nothing misspelt, nothing unset, nothing unused.

The functions headed "inside gin" are the only ones that look behind gin's public interface: it offers no way to list
macros, references and configurables.
"""

import difflib
import inspect
from collections.abc import Iterable, Iterator

import gin
from gin import config as gin_config

from adalink_jax.configuration.flags import GinFlags
from adalink_jax.errors import UserError


def nearest(name: str, names: Iterable[str]) -> str:
    """`"; nearest: A, B"`, or nothing."""
    near = difflib.get_close_matches(name, sorted(names), 3, cutoff=0.5)
    return f"; nearest: {', '.join(near)}" if near else ""


# --- inside gin ---


def configurables() -> dict[str, object]:
    """Short name -> function or class, of all that gin knows."""
    return {key.split(".")[-1]: value.wrapped for key, value in gin_config._REGISTRY.items()}


def config() -> dict[tuple[str, str], dict]:
    """`(scope, selector)` -> parameter -> value, of all that is bound."""
    return gin_config._CONFIG


def operative_config() -> dict[tuple[str, str], dict]:
    """The same of all that was used so far, defaults included."""
    return gin_config._OPERATIVE_CONFIG


def is_macro(selector: str) -> bool:
    """Whether a selector is that of gin's macros."""
    return selector == "gin.macro"


def macros_set() -> dict[str, object]:
    """Macro -> value, of all that are set."""
    return {scope: value["value"] for (scope, selector), value in config().items() if is_macro(selector)}


def references(value) -> Iterator[gin_config.ConfigurableReference]:
    """References inside a value, of macros and of configurables."""
    for part in gin_config._iterate_flattened_values(value):
        if isinstance(part, gin_config.ConfigurableReference):
            yield part


def macro_name(reference) -> str | None:
    """The macro that a reference is of; None for another configurable."""
    return reference.scoped_selector.rpartition("/")[0] if is_macro(reference.config_key[1]) else None


# --- checks ---


def explain_unknown(name: str) -> str | None:
    """Why the binding `scope/function.parameter` cannot be; None if it can."""
    function, _, parameter = name.split("/")[-1].rpartition(".")
    known = configurables()
    short = function.split(".")[-1]
    if short not in known:
        return f"{name} is set, but there is nothing called {function}{nearest(function, known)}."
    takes = [p for p in inspect.signature(known[short]).parameters if p not in ("self", "parent", "name")]
    if parameter not in takes:
        return f"{name} is set, but {function} takes no {parameter}{nearest(parameter, takes)}; it takes {', '.join(takes)}."
    return None


def check_macros(flags: GinFlags, require_all: bool) -> None:
    """Every macro that is used is set, and every macro that is set is used.

    Args:
      flags: the command line's own macros must be used; those of files as well if `require_all`.
      require_all: also refuse what is left at `%gin.REQUIRED`. False for commands that need a part of a configuration.

    Raises:
      UserError: names the macros, and the nearest.
    """
    known = macros_set()
    used_by: dict[str, str] = {}
    required = []
    for (scope, selector), parameters in config().items():
        for parameter, value in parameters.items():
            user = scope if is_macro(selector) else f"{selector.split('.')[-1]}.{parameter}"
            if _is_required(value):
                required.append(user)
            for reference in references(value):
                name = macro_name(reference)
                if name is not None and name != user:  # a macro that refers to itself alone is not used
                    used_by.setdefault(name, user)
    _check_cycles(known)
    unset = [name for name in used_by if name not in known and name != "gin.REQUIRED"]
    if unset and require_all:
        told = ", ".join(f"%{name} (used by {used_by[name]}{nearest(name, known)})" for name in unset)
        raise UserError(f"Set nowhere: {told}; add {' '.join(f'--gin.{name}=VALUE' for name in unset)}.")
    typed = [name for name, _ in flags.bindings if "." not in name]
    for name in [*typed, *(known if require_all else ())]:
        if name not in used_by:
            raise UserError(f"{name} is set, but nothing refers to it{nearest(name, used_by)}.")
    if required and require_all:
        raise UserError(f"Not set: {', '.join(required)}; add {' '.join(f'--gin.{name}=VALUE' for name in required)}.")


def _check_cycles(known: dict[str, object]) -> None:
    refers_to = {name: [macro_name(r) for r in references(value)] for name, value in known.items()}
    for start in known:
        reached, frontier = set(), [start]
        while frontier:
            for name in refers_to.get(frontier.pop(), ()):
                if name == start:
                    raise UserError(f"The macro {start} refers to itself; give it a value.")
                if name is not None and name not in reached:
                    reached.add(name)
                    frontier.append(name)


def _is_required(value) -> bool:
    return value is gin.REQUIRED or any(r.scoped_selector.startswith("gin.REQUIRED") for r in references(value))


def check_all_used(flags: GinFlags) -> None:
    """Every parameter set on the command line was consumed by something that was built.

    Raises:
      UserError: names the first that was not.
    """
    consumed = {(*key, name) for key, values in operative_config().items() for name in values}
    for name, text in flags.bindings:
        path, _, parameter = name.rpartition(".")
        scope, _, function = path.rpartition("/")
        mine = lambda used_scope, selector, p, scope=scope, function=function, parameter=parameter: (
            p == parameter
            and (selector == function or selector.endswith(f".{function}"))
            and used_scope.startswith(scope)
        )
        if path and not any(mine(*used) for used in consumed):
            raise UserError(f"--gin.{name}={text} is set, but nothing in this run uses {path}.")
