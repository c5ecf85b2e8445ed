"""Which models can be trained on packed examples: rows of several examples, none of which may depend on the others."""

import flax.linen as nn

from adalink_jax.errors import UserError
from adalink_jax.models.backbone import Backbone


def keeps_examples_apart(adapter: nn.Module) -> bool:
    """Whether an adapter declares `per_token` (it maps each embedding by itself) or `per_segment` (it heeds segments and positions)."""
    return getattr(adapter, "per_token", False) or getattr(adapter, "per_segment", False)


def check_packable(backbone: Backbone, adapter: nn.Module | None) -> None:
    """Refuses a model that would mix the examples of a packed row.

    Raises:
      UserError: names the model or the adapter.
    """
    backbone.abstract_packed_batch(1, 1, 1)
    if adapter is not None and not keeps_examples_apart(adapter):
        raise UserError(
            f"{type(adapter).__name__} does not keep the examples of a packed row apart; set PACK_EXAMPLES to False."
        )
