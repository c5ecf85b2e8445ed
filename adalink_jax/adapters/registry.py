"""Methods by the names that adapter files give them."""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn

from adalink_jax.adapters.adalink import AdaLinkAdapter
from adalink_jax.errors import UserError

METHODS = {"AdaLinkAdapter": AdaLinkAdapter}


def make_adapter(method: str | None, settings: Mapping) -> nn.Module:
    """The module of an adapter file's `method` and `settings`.

    Raises:
      UserError: for a method or a setting that is none of this version's.
    """
    if method not in METHODS:
        raise UserError(f"There is no method {method!r}; this version has {', '.join(METHODS)}.")
    fields = {field.name for field in dataclasses.fields(METHODS[method])}
    unknown = sorted(settings.keys() - fields)
    if unknown:
        raise UserError(
            f"{method} has no setting {unknown[0]!r}; it has {', '.join(sorted(fields - {'parent', 'name'}))}."
        )
    return METHODS[method](**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})
