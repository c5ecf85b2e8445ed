"""Checks every value that gin gives to a configurable against the annotation of its parameter.

Literals and macros are checked when the configuration is complete, and what a reference builds when it is built. Parameters without
an annotation, and those with one that cannot be checked, take anything.
"""

import collections
import collections.abc
import contextlib
import contextvars
import copy
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Annotated, Any, Literal, Union

import gin
import pydantic
from gin import config as gin_config
from gin import config_parser
from pydantic_core import core_schema

from adalink_jax import typed_values
from adalink_jax.configuration import gin_checks
from adalink_jax.errors import UserError

PLACES: dict[tuple[str, str, str], str] = {}  # (scope, selector, parameter) -> where it is bound
_Call = tuple[tuple[str, ...], str]  # scopes, selector
_BUILDING: contextvars.ContextVar[tuple[_Call, ...]] = contextvars.ContextVar("building", default=())  # outermost first
_UNKNOWN = gin_config.ConfigurableReference  # its value is known when it is built


@contextlib.contextmanager
def recorded_places() -> Iterator[None]:
    """While entered, gin's parser records where each parameter is bound, and reports what Python cannot build as a syntax error."""

    class Parser(config_parser.ConfigParser):
        def __next__(self) -> Any:
            begins = self._current_location(ignore_char_num=True)
            try:
                statement = super().__next__()
            except (TypeError, RecursionError) as e:  # {[]: 1}, or a thousand brackets
                raise SyntaxError(f"the value cannot be read: {e}", begins) from e
            if isinstance(statement, config_parser.BindingStatement):
                with contextlib.suppress(ValueError):  # an unknown name, which gin reports
                    PLACES[_key(statement)] = _place(statement.location)
            return statement

    gins = config_parser.ConfigParser
    config_parser.ConfigParser = Parser  # pyright: ignore[reportAttributeAccessIssue]  # gin records no places
    try:
        yield
    finally:
        config_parser.ConfigParser = gins  # pyright: ignore[reportAttributeAccessIssue]


def _key(statement: config_parser.BindingStatement) -> tuple[str, str, str]:
    scope, selector, parameter, *_ = statement
    if not parameter:
        return f"{scope}/{selector}" if scope else selector, gin_checks.MACRO, "value"
    return gin_config.ParsedBindingKey.parse((scope, selector, parameter)).scope_selector_arg


def _place(location: config_parser.Location) -> str:
    return f"in {location.filename}, line {location.line_num}" if location.filename else "on the command line"


def check_literals() -> None:
    """Checks all values that are known before anything is built. Macros must not refer to themselves.

    Raises:
      UserError: for the first value of a wrong type or out of its range.
    """
    gin_config._get_bindings = _checked_bindings  # gin has no hook for what a reference builds
    for (scope, selector), values in gin_checks.CONFIG.items():
        for parameter, value in values.items():
            if value is not gin.REQUIRED:
                _checked(scope, selector, parameter, _resolved(value))


class _Bindings(dict):
    """The bindings of a call. gin builds references by copying them."""

    selector: str

    def __deepcopy__(self, memo: dict) -> dict[str, Any]:
        return {parameter: self._build(parameter, value, memo) for parameter, value in self.items()}

    def _build(self, parameter: str, value: object, memo: dict) -> Any:
        scopes = gin.current_scope()
        building = (tuple(scopes), self.selector)
        for reference in gin_checks.references(value):
            _refuse_unbuildable(f"{_short(self.selector)}.{parameter}", reference, (*_BUILDING.get(), building))
        token = _BUILDING.set((*_BUILDING.get(), building))
        try:
            built = copy.deepcopy(value, memo)
        finally:
            _BUILDING.reset(token)
        ways = ("/".join(scopes[:count]) for count in range(len(scopes), -1, -1))
        scope = next((way for way in ways if parameter in gin_checks.CONFIG.get((way, self.selector), {})), "")
        return _checked(scope, self.selector, parameter, built)


def check_argument(name: str, value: Any, annotation: Any) -> None:
    """Checks an argument of a function that users call.

    Args:
      name: of the argument, for the error.
      value: its value.
      annotation: a type, as for `typed_values.wrong`.

    Raises:
      UserError: if the value is not of that type.
    """
    if problem := typed_values.wrong(value, _simple(annotation)):
        raise UserError(f"`{name}` {problem}.")


def check_fields(instance: Any) -> None:
    """Checks the fields of a dataclass or module that users make, by their annotations.

    Raises:
      UserError: if a value is of another type.
    """
    for name, (annotation, _) in _annotations(type(instance)).items():
        if hasattr(instance, name) and (problem := typed_values.wrong(getattr(instance, name), annotation)):
            raise UserError(f"`{type(instance).__name__}.{name}` {problem}.")


def _checked_bindings(selector: str, *arguments: Any, **how: Any) -> dict[str, Any]:
    bindings = _Bindings(_gin_bindings(selector, *arguments, **how))
    bindings.selector = selector
    return bindings


_gin_bindings = gin_config._get_bindings


def _checked(scope: str, selector: str, parameter: str, value: Any) -> Any:
    """The value as its annotation says, such as 1.0 for 1.

    Raises:
      UserError: if it is wrong.
    """
    annotation, default = _annotations(gin_checks.configurable(selector)).get(parameter, (Any, None))
    if annotation is Any or value is default:  # `x: int = None`
        return value
    try:
        problem = typed_values.wrong(value, annotation, unknown=_UNKNOWN)
    except Exception:  # of a user's container, which pydantic copies
        return value
    if problem is None:
        custom = isinstance(value, Collection) and type(value).__module__ != "builtins"
        return value if custom or any(gin_checks.references(value)) else typed_values.fitted(value, annotation)
    sets, key = f"{_short(selector)}.{parameter}", (scope, selector, parameter)
    sets = name = f"{scope}/{sets}" if scope else sets
    bound, macros = gin_checks.CONFIG.get((scope, selector), {}).get(parameter), gin_checks.macros_set()
    while isinstance(bound, _UNKNOWN) and (macro := gin_checks.macro_name(bound)) in macros:
        bound, name, key = macros[macro], macro, (macro, gin_checks.MACRO, "value")
    if type(value) is object:  # what gin.REQUIRED is, and its copies are
        problem = f"must be set: add --gin.{name}=VALUE"
    about = [*([sets] if name != sets else []), *([f"set {PLACES[key]}"] if key in PLACES else [])]
    raise UserError(f"{name} {problem}" + (f" ({', '.join(about)})." if about else "."))


def _refuse_unbuildable(user: str, reference: gin_config.ConfigurableReference, building: Collection[_Call]) -> None:
    """Refuses `@fn()` that needs itself, or that lacks a parameter which `fn` cannot do without."""
    if not reference.evaluate or gin_checks.macro_name(reference) is not None:
        return
    scopes, selector = reference.scopes or gin.current_scope(), reference.config_key[1]
    if (tuple(scopes), selector) in building:
        raise UserError(f"{user} is {reference}, which needs {user} itself; give it another value.")
    bound = _gin_bindings(selector, scopes)
    for parameter in _parameters(gin_checks.configurable(selector)):
        needed = parameter.default is parameter.empty and parameter.kind in (
            parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY,
        )  # fmt: skip
        if needed and parameter.name not in bound:
            name = f"{_short(selector)}.{parameter.name}"
            raise UserError(f"{user} is {reference}, and {name} is not set; add --gin.{name}=VALUE, or its gin file.")


def _short(selector: str) -> str:
    return selector.split(".")[-1]


def _resolved(value: Any) -> Any:
    """The value with macros in place; a reference that builds nothing (`@fn`) is the function, and others stay."""
    if isinstance(value, _UNKNOWN):
        macros, macro = gin_checks.macros_set(), gin_checks.macro_name(value)
        if macro in macros:
            return _resolved(macros[macro])
        return value if value.evaluate else value.scoped_configurable_fn
    if type(value) in (list, tuple):
        return type(value)(map(_resolved, value))
    if type(value) is dict:
        return {key if isinstance(key, _UNKNOWN) else _resolved(key): _resolved(item) for key, item in value.items()}
    return value


# --- annotations ---


def _parameters(configurable: Callable) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(configurable).parameters.values())
    except (TypeError, ValueError):  # of a class written in C
        return []


@functools.cache
def _annotations(configurable: Callable) -> Mapping[str, tuple[Any, Any]]:
    """Parameter -> its annotation, as far as values can be checked against it, and its default."""
    owners = inspect.getmro(configurable) if inspect.isclass(configurable) else (configurable,)
    modules = [vars(sys.modules[owner.__module__]) for owner in owners if owner.__module__ in sys.modules]
    names = dict(collections.ChainMap(*modules))
    return {
        parameter.name: (_checkable(parameter.annotation, names), parameter.default)
        for parameter in _parameters(configurable)
        if parameter.annotation is not parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    }


def _checkable(annotation: Any, names: dict[str, Any]) -> Any:
    """An annotation that pydantic can check: forward references are looked up in `names`, and classes are reduced to `isinstance`."""
    holder = types.SimpleNamespace(__annotations__={"value": annotation})
    try:
        simple = _simple(typing.get_type_hints(holder, names, include_extras=True)["value"])
        typed_values.wrong(None, simple)
    except Exception:  # of a user's annotation
        return Any
    return simple


def _simple(annotation: Any) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return Annotated[_simple(arguments[0]), *arguments[1:]]
    if origin in (Union, types.UnionType):
        return Union[tuple(map(_simple, arguments))]
    if origin is collections.abc.Callable:
        return Callable
    if origin in (Literal, type) or annotation in (None, Any, ...):
        return annotation
    kind = annotation if origin is None else origin
    if not inspect.isclass(kind) or getattr(kind, "_is_protocol", False):
        return Any
    if kind.__module__ in ("builtins", "collections.abc"):
        generic: Any = kind
        return kind if origin is None else generic[tuple(map(_simple, arguments))]
    return Annotated[Any, pydantic.GetPydanticSchema(lambda *_: core_schema.is_instance_schema(kind))]
