"""Attention of single queries, in one softmax, to two sets of keys: those known beforehand and those of the tokens so far.

    softmax([q k^T + bias ; q k'^T + bias']) [v ; v'] = softmax(...)[:S] v + softmax(...)[S:] v'

The keys known beforehand serve all decodes of an input. Neither set is copied to stand beside the other, nor for each decode.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from adalink_jax.models.attention.bias import Bias, capped, masked, of_rows


def attend_merged(
    query: Float[Array, "R H 1 K"],
    before: tuple[Float[Array, "B G S K"], Float[Array, "B G S K"]],
    decoded: tuple[Float[Array, "R G T K"], Float[Array, "R G T K"]],
    bias: Bias,
    softcap: float | None = None,
) -> Float[Array, "R H 1 K"]:
    """Attends to S keys of B inputs and T of R decodes, those of one input side by side.

    Args:
      query: queries, already scaled; H is a multiple of G, and each group of neighbouring heads has one head of keys.
      before: keys and values known beforehand; their positions are 0 to S - 1.
      decoded: keys and values of the decodes; their positions start at S.
      bias: what is added to the scores of all S + T keys, as for `attend`; its `keys` have B rows. It has no segments.
      softcap: see `attend`.

    Returns:
      The mixed values, in their dtype.
    """
    (rows, heads, _, width), (inputs, groups, known, _) = query.shape, before[0].shape
    query = query.reshape(inputs, rows // inputs, groups, heads // groups, width)
    keys, values = zip(before, (x.reshape(*query.shape[:3], -1, width) for x in decoded))
    layouts = "bgsk", "bngsk"
    added = of_rows(bias, 0, 1, known + keys[1].shape[3])
    parts = []
    for key, layout, part in zip(keys, layouts, (slice(known), slice(known, None))):
        scores = jnp.einsum(f"bnghk,{layout}->bnghs", query, key, preferred_element_type=jnp.float32)
        scores = capped(scores, softcap)
        if added is not None:
            scores = scores + added[:, 0, part].reshape(*((groups, -1) if len(added) > 1 else (1, 1)), scores.shape[-1])
        if bias.keys is not None:
            scores = scores + masked(bias.keys[:, part])[:, None, None, None]
        parts.append(scores)
    largest = jax.lax.stop_gradient(jnp.maximum(*(jnp.max(x, axis=-1, keepdims=True) for x in parts)))
    parts = [jnp.exp(x - largest) for x in parts]
    total = sum(jnp.sum(x, axis=-1, keepdims=True) for x in parts)
    weights = [(x / total).astype(value.dtype) for x, value in zip(parts, values)]
    mixed = [
        jnp.einsum(f"bnghs,{layout}->bnghk", x, value, preferred_element_type=jnp.float32)
        for x, value, layout in zip(weights, values, layouts)
    ]
    return (mixed[0] + mixed[1]).astype(decoded[1].dtype).reshape(rows, heads, 1, width)
