"""The kinds of embeddings that a method's own field names."""

import flax.linen as nn

from adalink_jax.errors import UserError
from adalink_jax.models.seam import KINDS


def kinds_of(adapter: nn.Module | None) -> tuple[str, ...]:
    """The kinds that an adapter's field `kinds` names; () without such a field, or if it is None.

    Raises:
      UserError: if the field holds something else.
    """
    kinds = getattr(adapter, "kinds", None)
    if kinds is None:
        return ()
    if not isinstance(kinds, tuple | list) or not kinds or not set(map(str, kinds)) <= set(KINDS):
        raise UserError(
            f"{type(adapter).__name__}.kinds is {kinds!r}; a method's field of this name says which embeddings it adapts, some of "
            f"{KINDS}, or None: rename the field if it is something else."
        )
    return tuple(kinds)
