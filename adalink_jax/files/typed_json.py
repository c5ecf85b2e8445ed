"""JSON files of a stated form: read as a pydantic model, or refused in one sentence."""

import json
import os
from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic
from etils import epath

from adalink_jax.errors import UserError
from adalink_jax.files.places import file_size, is_there
from adalink_jax.typed_values import STRICT, explain, shown

LARGEST = 64 * 2**20  # bytes; the index of a model of 100,000 tensors has 10 MB


class Form(pydantic.BaseModel):
    """What this package reads of a JSON object. Types are strict; other fields are kept in `model_extra`."""

    model_config = STRICT | pydantic.ConfigDict(extra="allow", frozen=True, protected_namespaces=())


FormT = TypeVar("FormT", bound=Form)


def read_form(
    path: epath.Path, form: type[FormT], remedy: str = "copy it again", error: type[UserError] = UserError
) -> FormT:
    """Reads a JSON file.

    Args:
      path: the file.
      form: what it holds.
      remedy: what the user can do about a file that is damaged.
      error: the class of the error.

    Raises:
      UserError: or `error`, for a file that is missing, too large, no regular file, no JSON object, or not of that form.
    """
    return as_form(read_object(path, remedy, error), form, os.fspath(path), remedy, error)


def as_form(
    value: Mapping[str, Any],
    form: type[FormT],
    name: str,
    remedy: str = "copy it again",
    error: type[UserError] = UserError,
) -> FormT:
    """A JSON object as a model.

    Args:
      value: the object.
      form: what it holds.
      name: what it is called in an error.
      remedy: see `read_form`.
      error: see `read_form`.

    Raises:
      UserError: or `error`, for an object that is not of that form.
    """
    try:
        # As JSON, so that a list passes for a tuple; what JSON cannot hold becomes its type's name.
        return form.model_validate_json(json.dumps(value, default=lambda other: type(other).__name__), strict=True)
    except pydantic.ValidationError as e:
        if e.errors()[0]["type"] == "json_invalid":  # such as half of a surrogate pair
            raise error(f"{name} is damaged ({e.errors()[0]['msg']}); {remedy}.") from e
        raise error(f"{name} {explain(e, value)}; {remedy}.") from e
    except (RecursionError, TypeError) as e:  # TypeError: a key of another type than text
        raise error(f"{name} is damaged ({_reason(e)}); {remedy}.") from e


def find_form(
    path: epath.Path, form: type[FormT], remedy: str = "copy it again", error: type[UserError] = UserError
) -> FormT | None:
    """As `read_form`; None if there is no such file."""
    return read_form(path, form, remedy, error) if is_there(path) else None


def read_state(path: epath.Path, form: type[Form]) -> dict[str, Any] | None:
    """The object in a small file of this package's own; None if it is missing, damaged, or not of that form."""
    try:
        value = find_object(path)
        if value is not None:
            as_form(value, form, os.fspath(path))
        return value
    except UserError:
        return None


def find_object(
    path: epath.Path, remedy: str = "copy it again", error: type[UserError] = UserError
) -> dict[str, Any] | None:
    """As `read_object`; None if there is no such file."""
    return read_object(path, remedy, error) if is_there(path) else None


def read_object(path: epath.Path, remedy: str = "copy it again", error: type[UserError] = UserError) -> dict[str, Any]:
    """The object in a JSON file, of any form; for arguments and errors see `read_form`."""
    return parse_object(read_text(path, remedy, error), os.fspath(path), remedy, error)


def read_text(path: epath.Path, remedy: str = "copy it again", error: type[UserError] = UserError) -> str:
    """The text of a JSON file, with the byte order mark that it may begin with; for arguments and errors see `read_form`."""
    if (size := file_size(path, remedy, error)) > LARGEST:
        raise error(f"{path} has {size:,} bytes, more than {LARGEST:,}; {remedy}.")
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as e:
        raise error(f"{path} is damaged or cut short (no UTF-8: {e.reason} at byte {e.start:,}); {remedy}.") from e


def parse_object(
    text: str, name: str, remedy: str = "copy it again", error: type[UserError] = UserError
) -> dict[str, Any]:
    """The object in a JSON text called `name`; for other arguments and errors see `read_form`."""
    try:
        value = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as e:  # ValueError: also a number of 10,000 digits
        raise error(f"{name} is damaged or cut short ({_reason(e)}); {remedy}.") from e
    if not isinstance(value, dict):
        raise error(f"{name} holds {shown(value)}, not an object; {remedy}.")
    return value


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)
