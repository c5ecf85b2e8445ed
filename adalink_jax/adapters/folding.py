"""Folding: a text adapter is a function of the token, so the adapted rows of the embedding table can be stored instead.

Exact for any phi, up to the rounding of the product and of the dtype that the table is stored in. T5 shares its table with
the decoder (and T5 1.0 with the logits), so the folded one is a table of its own, for the encoder alone.
"""

import flax.linen as nn
import jax
import numpy as np

from adalink_jax.errors import UserError
from adalink_jax.models.seam import KINDS, Inputs

_ROWS = 8192  # at once


def fold_text(adapter: nn.Module, params, table: np.ndarray) -> np.ndarray:
    """The encoder's table with the adapter in it: float32 [V, D].

    Args:
      adapter: an input adapter that maps each text embedding alone (`per_token`).
      params: its parameters.
      table: the base's embeddings [V, D].

    Raises:
      UserError: if the adapter cannot be folded, or adapts more than the text. (A shared pair of all kinds is taken for
        the text's: whether there are images is the backbone's to say.)
    """
    name = type(adapter).__name__
    if not getattr(adapter, "per_token", False):
        raise UserError(f"{name} cannot be folded: it does more than map each token's embedding.")
    kinds = getattr(adapter, "kinds", None) or tuple(sorted(params.keys() & set(KINDS))) or ("text",)
    if kinds != ("text",):
        raise UserError(
            f"{name} adapts {', '.join(kinds)}; only an adapter of the text alone can be folded into a table."
        )
    adapt = jax.jit(lambda rows: adapter.apply({"params": params}, Inputs(text=rows[None])).text[0])
    with jax.default_matmul_precision("highest"):
        parts = [adapt(table[i : i + _ROWS].astype(np.float32)) for i in range(0, len(table), _ROWS)]
    return np.concatenate([np.asarray(part) for part in parts])
