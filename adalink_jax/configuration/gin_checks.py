"""Checks that a parsed configuration has nothing misspelt, unset or unused.

gin's public interface cannot list macros, references and configurables; the functions under "inside gin" read its internals.
"""

import graphlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import gin
from gin import config as gin_config

from adalink_jax.configuration import moved_selectors
from adalink_jax.configuration.flags import GinFlags
from adalink_jax.configuration.requirements import MACROS
from adalink_jax.errors import UserError
from adalink_jax.near_names import near

Config = dict[tuple[str, str], dict[str, object]]  # (scope, selector) -> parameter -> value


def nearest(name: str, names: Iterable[str]) -> str:
    """`"; nearest: A, B"`, the end of an error message; "" if no name is near."""
    near_names = near(name, names)
    return f"; nearest: {', '.join(near_names)}" if near_names else ""


# --- inside gin ---

MACRO = "gin.macro"  # the selector of gin's macros
CONFIG: Config = gin_config._CONFIG  # all bindings
OPERATIVE_CONFIG: Config = gin_config._OPERATIVE_CONFIG  # all parameters used so far, defaults included


def configurables() -> dict[str, Callable]:
    """Short name -> function or class, for every configurable."""
    return {key.split(".")[-1]: value.wrapped for key, value in gin_config._REGISTRY.items()}


def configurable(selector: str) -> Callable:
    """The function or class of a complete selector."""
    return cast(Any, gin_config._REGISTRY[selector]).wrapped


def macros_set() -> dict[str, object]:
    """Macro -> value, for every macro that is set."""
    return {scope: value["value"] for (scope, selector), value in CONFIG.items() if selector == MACRO}


def references(value: object) -> Iterator[gin_config.ConfigurableReference]:
    """The references in a value, to macros and to configurables."""
    for part in gin_config._iterate_flattened_values(value):
        if isinstance(part, gin_config.ConfigurableReference):
            yield part


def macro_name(reference: gin_config.ConfigurableReference) -> str | None:
    """The macro that a reference names; None for a reference to another configurable."""
    return reference.scoped_selector.rpartition("/")[0] if reference.config_key[1] == MACRO else None


# Code calls these by itself, each for one command; other configurables that code calls may be called for any.
ROOTS = {"train", "train_pack", "Predictor", "Comparison", "Study", "Sweep", "step_cost"}
# Code calls no configurable of these modules: references choose among them.
BY_REFERENCE = tuple(
    f"adalink_jax.{module}."
    for module in ("adapters", "models", "training.optimizers", "training.packs.members", "training.prompt_start")
)

# --- checks ---


def explain_unknown(name: str) -> str | None:
    """What is wrong with the name of a binding, `scope/function.parameter`; None if nothing."""
    function, _, parameter = name.split("/")[-1].rpartition(".")
    known = configurables()
    short = function.split(".")[-1]
    if short not in known:
        return f"{name} is set, but there is nothing called {function}{nearest(function, known)}."
    takes = [p for p in inspect.signature(known[short]).parameters if p not in ("self", "parent", "name")]
    if parameter not in takes:
        return f"{name} is set, but {function} takes no {parameter}{nearest(parameter, takes)}; it takes {', '.join(takes)}."
    return None


def check_macros(flags: GinFlags, require_all: bool, places: Mapping[tuple[str, str, str], str]) -> None:
    """Checks that every used macro is set, and that every set macro is used.

    Args:
      flags: macros set on the command line must be used; those set in files too if `require_all`.
      require_all: also refuse values left at `%gin.REQUIRED`. False for commands that need only a part of a configuration.
      places: (scope, selector, parameter) -> where it is bound, in words.

    Raises:
      UserError: with the macros, and the nearest names.
    """
    known = macros_set()
    used_by: dict[str, str] = {}
    required: dict[str, str] = {}  # its name -> where it is
    for (scope, selector), parameters in CONFIG.items():
        for parameter, value in parameters.items():
            user = scope if selector == MACRO else f"{selector.split('.')[-1]}.{parameter}"
            value_references = list(references(value))
            if value is gin.REQUIRED or any(r.scoped_selector.startswith("gin.REQUIRED") for r in value_references):
                required[user] = places.get((scope, selector, parameter), "")
            for reference in value_references:
                name = macro_name(reference)
                if name is not None and name != user:  # a macro used only by itself counts as unused
                    used_by.setdefault(name, user)
    _check_cycles(known)
    unset = [name for name in used_by if name not in known and name != "gin.REQUIRED"]
    if unset and require_all:
        uses = ", ".join(f"%{name} (used by {used_by[name]}{nearest(name, known)})" for name in unset)
        flags_to_add = " ".join(f"--gin.{name}=VALUE" for name in unset if name not in MACROS)
        files_to_add = dict.fromkeys(MACROS[name] for name in unset if name in MACROS)
        raise UserError(f"Not set: {uses}; add {' and '.join(filter(None, (flags_to_add, *files_to_add)))}.")
    typed = [name for name, _ in flags.bindings if "." not in name]
    for name in [*typed, *(known if require_all else ())]:
        if name not in used_by:
            raise UserError(f"{name} is set, but nothing refers to it{nearest(name, used_by)}.")
    if required and require_all:
        names = ", ".join(f"{name} ({place})" if place else name for name, place in required.items())
        raise UserError(f"Not set: {names}; add {' '.join(f'--gin.{name}=VALUE' for name in required)}.")


def _check_cycles(known: dict[str, object]) -> None:
    refers_to = {name: {macro_name(r) for r in references(value)} for name, value in known.items()}
    try:
        graphlib.TopologicalSorter(refers_to).prepare()
    except graphlib.CycleError as e:
        raise UserError(f"The macro {min(e.args[1], key=list(known).index)} refers to itself; give it a value.") from e


def check_reachable(flags: GinFlags, *roots: str) -> None:
    """Checks that references lead to everything set on the command line, before anything is built; `check_all_used` is exact.

    Args:
      flags: of the command line.
      roots: those of `ROOTS` that the command calls.

    Raises:
      UserError: for the first parameter of a model, adapter, optimizer or schedule that nothing refers to.
    """
    reached, parameters_of = {MACRO}, {}
    for (_, selector), parameters in CONFIG.items():
        parameters_of.setdefault(selector, []).extend(parameters.values())
    waiting = {x for x in parameters_of if not x.startswith(BY_REFERENCE) and x.split(".")[-1] not in ROOTS - {*roots}}
    while waiting:
        selector = waiting.pop()
        if selector not in reached:
            reached.add(selector)
            for value in parameters_of.get(selector, ()):
                waiting |= _selectors(value)
    if any(selector.partition(".")[0] not in ("adalink_jax", "gin") for selector in reached):
        return  # a user's own code may call anything
    for name, text in flags.bindings:
        path, _, _ = name.rpartition(".")
        function = moved_selectors.current(path.rpartition("/")[2])
        matching = gin_config._REGISTRY.matching_selectors(function) if path else []
        if matching and not reached & {*matching} and all(x.startswith(BY_REFERENCE) for x in matching):
            raise _unused(name, text)


def _selectors(value: object) -> set[str]:
    """The selectors of the configurables that a value refers to, by macros too."""
    selectors = set()
    for reference in references(value):
        macro = macro_name(reference)
        selectors |= {reference.config_key[1]} if macro is None else _selectors(macros_set().get(macro))
    return selectors


def _unused(name: str, text: str) -> UserError:
    return UserError(f"--gin.{name}={text} is set, but nothing in this run uses {name.rpartition('.')[0]}.")


def check_all_used(flags: GinFlags) -> None:
    """Checks that everything set on the command line was used by something that was built.

    Raises:
      UserError: for the first parameter that was not.
    """
    used = {(*key, name) for key, values in OPERATIVE_CONFIG.items() for name in values}
    for name, text in flags.bindings:
        path, _, parameter = name.rpartition(".")
        scope, _, function = path.rpartition("/")
        function = moved_selectors.current(function)
        matches = (
            used_parameter == parameter and f".{selector}".endswith(f".{function}") and used_scope.startswith(scope)
            for used_scope, selector, used_parameter in used
        )  # fmt: skip
        if path and not any(matches):
            raise _unused(name, text)
