"""Checks values against type annotations, strictly, and says in one clause what is wrong. The checks are pydantic's."""

import contextlib
import functools
import numbers
import reprlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import pydantic

# The types of settings. Numbers are finite, and fit in 32 bits.
_LARGEST = 2**31 - 1
PositiveInt = Annotated[int, pydantic.Field(ge=1, le=_LARGEST)]
NonNegativeInt = Annotated[int, pydantic.Field(ge=0, le=_LARGEST)]
Seed = NonNegativeInt
FiniteFloat = Annotated[float, pydantic.Field(ge=-3.4e38, le=3.4e38, allow_inf_nan=False)]
PositiveFloat = Annotated[float, pydantic.Field(gt=0, le=3.4e38, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, pydantic.Field(ge=0, le=3.4e38, allow_inf_nan=False)]
Fraction = Annotated[float, pydantic.Field(ge=0, le=1, allow_inf_nan=False)]


def one_of(*choices: str | None) -> pydantic.AfterValidator:
    """For the annotation of a setting that takes one of a few texts: `Annotated[str, one_of("a", "b")]`."""

    def check(value: str | None) -> str | None:
        if value not in choices:
            raise ValueError(" or ".join(map(repr, choices)))
        return value

    return pydantic.AfterValidator(check)


DType = Annotated[str, one_of("float32", "bfloat16")]

STRICT = pydantic.ConfigDict(strict=True, arbitrary_types_allowed=True)
_LONGEST = 120  # characters of a value in a message

_KINDS = {
    bool: "a truth value", int: "a whole number", float: "a number", str: "a text", bytes: "bytes", list: "a list",
    tuple: "a list", set: "a set", dict: "a mapping", type(None): "no value",
}  # fmt: skip
_WANTED = {
    "bool_type": "True or False", "int_type": "a whole number", "float_type": "a number", "string_type": "a text",
    "bytes_type": "bytes", "none_required": "None", "list_type": "a list", "tuple_type": "a list",
    "sequence_str": "a list, not one text", "set_type": "a set", "frozen_set_type": "a set", "dict_type": "a mapping",
    "mapping_type": "a mapping", "model_type": "a mapping", "model_attributes_type": "a mapping",
    "dataclass_type": "a mapping", "callable_type": "a function", "finite_number": "finite",
    "literal_error": "{expected}", "enum": "{expected}", "is_instance_of": "a {class}", "is_subclass_of": "a kind of {class}",
    "greater_than": "more than {gt}", "greater_than_equal": "{ge} or more", "less_than": "less than {lt}",
    "less_than_equal": "{le} or less", "multiple_of": "a multiple of {multiple_of}",
    "too_short": "a list of {min_length} or more", "too_long": "a list of at most {max_length}",
    "string_too_short": "a text of {min_length} characters or more", "string_too_long": "a text of at most {max_length} characters",
    "string_pattern_mismatch": "a text of the form {pattern}",
}  # fmt: skip

_RANGES = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "multiple_of", "finite_number")


def shown(value: object) -> str:
    """A value as it stands in a message: with what it is, and shortened, such as `'1e-3', a text`."""
    if value is not None and type(value) not in _KINDS:
        name = getattr(value, "__name__", None) if callable(value) else None
        kind = "class" if isinstance(value, type) else "function"
        return f"a {type(value).__name__}" if name is None else f"the {kind} {name}"
    text = _short().repr(value)
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
    return f"{text}, {_KINDS[type(value)]}" if value is not None else text


def wrong(value: object, annotation: Any, unknown: type | tuple[type, ...] = ()) -> str | None:
    """What is wrong with a value of this annotation; None if nothing is.

    A whole number passes for a number, a list for a tuple; a truth value does not pass for a number, nor a text for a sequence.

    Args:
      value: the value.
      annotation: a type, as `typing` and pydantic understand it: `int | None`, `Annotated[int, pydantic.Field(ge=1)]`.
      unknown: types that stand for values which are not known yet; nothing is wrong with them.

    Returns:
      The end of a sentence, such as "is '1e-3', a text; it must be a number".

    Raises:
      pydantic.PydanticUserError: for an annotation of which pydantic can make nothing.
    """
    check = _adapter(annotation)
    try:
        check.validate_python(value)
    except pydantic.ValidationError:
        try:
            check.validate_python(_tuples(value))
        except pydantic.ValidationError as error:
            problems = [problem for problem in _furthest(error, value) if not isinstance(problem["input"], unknown)]
            return _clause(problems, value) if problems else None
    return None


def fitted(value: Any, annotation: Any) -> Any:
    """A value with which nothing is `wrong`, as its annotation says: a whole number that is to be a number, a list that is to be a tuple."""
    check = _adapter(annotation)
    with contextlib.suppress(pydantic.ValidationError):
        return check.validate_python(value)
    return check.validate_python(_tuples(value))


def explain(error: pydantic.ValidationError, value: object) -> str:
    """What is wrong with a value, by pydantic's report on it.

    Args:
      error: the report.
      value: the value as a whole; a part of it that is wrong is named by its place in it.

    Returns:
      The end of a sentence whose subject is the value.
    """
    return _clause(_furthest(error, value), value)


def _furthest(error: pydantic.ValidationError, value: object) -> list[Any]:
    """The problems that went furthest into the value: a union reports on each of its types, and that is the one that was meant."""
    problems = error.errors(include_url=False)
    deepest = max(len(_place(problem["loc"], value)) for problem in problems)
    return [problem for problem in problems if len(_place(problem["loc"], value)) == deepest]


def _clause(problems: Sequence[Any], value: object) -> str:
    place = _place(problems[0]["loc"], value)
    problems = [problem for problem in problems if _place(problem["loc"], value) == place]
    name = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).removeprefix(".")
    if problems[0]["type"] == "missing":
        return f"lacks `{name}`"
    if problems[0]["type"] == "extra_forbidden":
        return f"has `{name}`, which is not known"
    ranges = [problem for problem in problems if problem["type"] in _RANGES]  # of the type that was meant
    wanted = " or ".join(sorted(set(map(_wanted, ranges or problems))))  # equal unions may differ in order
    what = f"is {shown(problems[0]['input'])}; it must be {wanted}"
    return f"has `{name}`, which {what}" if place else what


def _wanted(problem: Mapping[str, Any]) -> str:
    form = _WANTED.get(problem["type"])
    if form is None:
        return problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if form.endswith("{class}"):
        name = problem["ctx"]["class"]
        return {"Sequence": "a list", "Mapping": "a mapping"}.get(name, form.format(**problem["ctx"]))
    limits = problem.get("ctx", {}).items()
    return form.format(**{name: f"{x:g}" if isinstance(x, float) else x for name, x in limits})


def _place(location: Sequence[int | str], value: object) -> tuple[int | str, ...]:
    """The part of pydantic's location that is in the value; the rest names a union's types or a mapping's key."""
    place = []
    for step in location:
        if isinstance(value, Mapping):
            inside, known = value.get(step), step in value or (step not in ("[key]",) and step == location[-1])
        elif isinstance(value, Sequence) and not isinstance(value, str) and isinstance(step, int):
            inside, known = (value[step] if step < len(value) else None), True
        else:
            continue
        if known:
            place.append(step)
            value = inside
    return tuple(place)


def _tuples(value: object) -> object:
    """The value with tuples in place of its lists, and plain numbers in place of NumPy's."""
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return tuple(map(_tuples, value))
    if type(value) is dict:
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, numbers.Real) and type(value) not in _KINDS:
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    return value


@functools.cache
def _adapter(annotation: Any) -> pydantic.TypeAdapter[Any]:
    try:
        return pydantic.TypeAdapter(annotation, config=STRICT)
    except pydantic.PydanticUserError:  # a model or a dataclass has a configuration of its own
        return pydantic.TypeAdapter(annotation)


@functools.cache
def _short() -> reprlib.Repr:
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = _LONGEST
    short.maxlist = short.maxtuple = short.maxdict = 4
    return short
