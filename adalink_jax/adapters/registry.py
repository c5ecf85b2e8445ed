"""Methods by the names that adapter files give them."""

import dataclasses
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
    """`{"method": ..., "settings": {...}}` of a module, JSON-able; modules among its settings are described in turn."""

    def plain(value):
        if isinstance(value, nn.Module):
            return describe_adapter(value)
        return [plain(x) for x in value] if isinstance(value, (tuple, list)) else value

    settings = {
        x.name: plain(getattr(module, x.name)) for x in dataclasses.fields(module) if x.name not in _FLAX_FIELDS
    }
    return {"method": type(module).__name__, "settings": settings}


def make_adapter(method: str | None, settings: Mapping) -> nn.Module:
    """The inverse of `describe_adapter`.

    Raises:
      UserError: for a method or a setting that is none of this version's.
    """
    if method not in METHODS:
        raise UserError(f"There is no method {method!r}; this version has {', '.join(METHODS)}.")
    fields = {field.name for field in dataclasses.fields(METHODS[method])} - _FLAX_FIELDS
    unknown = sorted(settings.keys() - fields)
    if unknown:
        raise UserError(f"{method} has no setting {unknown[0]!r}; it has {', '.join(sorted(fields))}.")

    def whole(value):
        if isinstance(value, Mapping):
            return make_adapter(value.get("method"), value.get("settings", {}))
        return tuple(whole(x) for x in value) if isinstance(value, list) else value

    return METHODS[method](**{name: whole(value) for name, value in settings.items()})
