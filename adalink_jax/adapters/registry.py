"""Methods by name, as adapter files name them.

This package's methods have short names, all others are `module.Class`. A name in a file never causes an import: import the
method's module first.
"""

import collections.abc
import dataclasses
import math
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from adalink_jax.adapters.adalink import AdaLinkAdapter
from adalink_jax.adapters.chain import Chain
from adalink_jax.adapters.lora import LoRA
from adalink_jax.adapters.norm_tuning import NormTuning
from adalink_jax.adapters.position_offsets import PositionOffsets
from adalink_jax.adapters.prompt_tuning import PromptTuning
from adalink_jax.errors import UserError

METHODS = {
    method.__name__: method for method in (AdaLinkAdapter, Chain, LoRA, NormTuning, PositionOffsets, PromptTuning)
}
_FLAX_FIELDS = {"parent", "name"}


def describe_adapter(module: nn.Module) -> dict:
    """Describes a module as `{"method": ..., "settings": {...}}` for JSON, with modules among its settings described alike.

    Raises:
      UserError: for a setting that a file cannot hold.
    """
    method = type(module).__name__
    if METHODS.get(method) is not type(module):
        method = f"{type(module).__module__}.{type(module).__qualname__}"

    def plain(name, value):
        if isinstance(value, nn.Module):
            return describe_adapter(value)
        if isinstance(value, (tuple, list)):
            return [plain(name, x) for x in value]
        if not isinstance(value, str | int | float | None):
            raise UserError(
                f"{method}.{name} is {value!r}, which an adapter file cannot hold; use numbers, strings, None, modules, or "
                f"tuples of these."
            )
        return value

    names = [field.name for field in dataclasses.fields(module) if field.name not in _FLAX_FIELDS]
    return {"method": method, "settings": {name: plain(name, getattr(module, name)) for name in names}}


def make_adapter(method: str | None, settings: Mapping) -> nn.Module:
    """Makes a module from its description: the inverse of `describe_adapter`.

    Raises:
      UserError: for an unknown method or setting, or a method whose module was not imported.
    """
    method_class = _method(method)
    fields = {field.name for field in dataclasses.fields(method_class)} - _FLAX_FIELDS
    unknown = sorted(settings.keys() - fields)
    if unknown:
        raise UserError(f"{method} has no setting {unknown[0]!r}; it has {', '.join(sorted(fields))}.")

    def whole(value):
        if isinstance(value, Mapping):
            return make_adapter(value.get("method"), value.get("settings", {}))
        return tuple(whole(x) for x in value) if isinstance(value, list) else value

    values = {name: whole(value) for name, value in settings.items()}
    try:
        kinds = typing.get_type_hints(method_class)
    except NameError:  # a user's module imports the names of its annotations for type checkers only
        kinds = {}
    for name, value in values.items():
        if name in kinds and not _fits(value, kinds[name]):
            kind = {float: "a finite float", int: "an int", bool: "a bool"}.get(kinds[name], kinds[name])
            raise UserError(f"{method}.{name} is {value!r}; it takes {kind}.")
    return method_class(**values)


def _fits(value: Any, kind: Any) -> bool:
    """Whether a setting has the type that its method declares; numbers are finite, and an int is a float."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin in (tuple, collections.abc.Sequence):
        if not isinstance(value, tuple):
            return False
        kinds = arguments[:1] * len(value) if arguments[-1:] == (...,) or origin is not tuple else arguments
        return len(kinds) == len(value) and all(map(_fits, value, kinds))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return type(value) is int
    return kind not in (str, bool, types.NoneType) or isinstance(value, kind)


def _method(name: str | None) -> type[nn.Module]:
    """Returns the class of this name, without importing anything."""
    if name in METHODS:
        return METHODS[name]
    module, _, short = (name or "").rpartition(".")
    if not module:
        raise UserError(f"There is no method {name!r}; this version has {', '.join(METHODS)}.")
    if module not in sys.modules:
        raise UserError(
            f"The method {name} is not part of this package, and an adapter file never causes an import; import {module} "
            f"first."
        )
    method = vars(sys.modules[module]).get(short)
    if not (isinstance(method, type) and issubclass(method, nn.Module)):
        raise UserError(f"The imported module {module} has no Flax module {short}; install a version that has it.")
    return method
