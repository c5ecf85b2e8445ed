"""Methods by the names that adapter files give them.

This package's own have short names; any other is `module.Class`. A name in a file never causes an import: the module must
have been imported before.
"""

import dataclasses
import sys
from collections.abc import Mapping

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
    """`{"method": ..., "settings": {...}}` of a module, JSON-able; modules among its settings are described in turn.

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
                f"{method}.{name} is {value!r}, which no adapter file can hold; let the settings of a method be numbers, "
                f"strings, None, modules, or tuples of these."
            )
        return value

    names = [field.name for field in dataclasses.fields(module) if field.name not in _FLAX_FIELDS]
    return {"method": method, "settings": {name: plain(name, getattr(module, name)) for name in names}}


def make_adapter(method: str | None, settings: Mapping) -> nn.Module:
    """The inverse of `describe_adapter`.

    Raises:
      UserError: for a method or a setting that there is not, and a method whose module was not imported.
    """
    made = _method(method)
    fields = {field.name for field in dataclasses.fields(made)} - _FLAX_FIELDS
    unknown = sorted(settings.keys() - fields)
    if unknown:
        raise UserError(f"{method} has no setting {unknown[0]!r}; it has {', '.join(sorted(fields))}.")

    def whole(value):
        if isinstance(value, Mapping):
            return make_adapter(value.get("method"), value.get("settings", {}))
        return tuple(whole(x) for x in value) if isinstance(value, list) else value

    return made(**{name: whole(value) for name, value in settings.items()})


def _method(name: str | None) -> type[nn.Module]:
    """The class of this name, of those that are here already."""
    if name in METHODS:
        return METHODS[name]
    module, _, short = (name or "").rpartition(".")
    if not module:
        raise UserError(f"There is no method {name!r}; this version has {', '.join(METHODS)}.")
    if module not in sys.modules:
        raise UserError(
            f"The method {name} is not part of this package, and an adapter file never causes an import; import {module} "
            f"before."
        )
    found = vars(sys.modules[module]).get(short)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise UserError(
            f"The module {module}, as it was imported, has no Flax module {short}; use the version that has."
        )
    return found
