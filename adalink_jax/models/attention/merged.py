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
    decodes, shared = rows // inputs, heads // groups  # decodes of an input, query heads of a head of keys
    keys, values = zip(before, decoded)
    added = of_rows(bias, 0, 1, known + keys[1].shape[2])
    parts = []
    for key, part in zip(keys, (slice(known), slice(known, None))):
        together = _together(query.reshape(inputs, decodes, groups, shared, width), len(key))
        scores = jnp.einsum("bgqk,bgsk->bgqs", together, key, preferred_element_type=jnp.float32)
        scores = capped(_apart(scores, inputs, decodes), softcap)
        if added is not None:
            scores = scores + added[:, 0, part].reshape(*((groups, -1) if len(added) > 1 else (1, 1)), scores.shape[-1])
        if bias.keys is not None:
            scores = scores + masked(bias.keys[:, part])[:, None, None, None]
        parts.append(scores)
    largest = jax.lax.stop_gradient(jnp.maximum(*(jnp.max(x, axis=-1, keepdims=True) for x in parts)))
    parts = [jnp.exp(x - largest) for x in parts]
    total = sum(jnp.sum(x, axis=-1, keepdims=True) for x in parts)
    mixed = []
    for x, value in zip(parts, values):
        weights = _together((x / total).astype(value.dtype), len(value))
        part = jnp.einsum("bgqs,bgsk->bgqk", weights, value, preferred_element_type=jnp.float32)
        mixed.append(_apart(part, inputs, decodes))
    return (mixed[0] + mixed[1]).astype(decoded[1].dtype).reshape(rows, heads, 1, width)


def _together(x: Float[Array, "B N G H X"], rows: int) -> Float[Array, "rows G queries X"]:
    """The queries that each row of keys serves: N * H where B rows serve all decodes of an input, H where B * N rows serve one each.

    XLA's CPU backend cannot run a product of bfloat16 in float32 that has other dimensions than `attend`'s, where it is inside a loop.
    """
    inputs, decodes, groups, heads, width = x.shape
    if rows == inputs:
        return x.swapaxes(1, 2).reshape(inputs, groups, decodes * heads, width)
    return x.reshape(rows, groups, heads, width)


def _apart(x: Float[Array, "rows G queries X"], inputs: int, decodes: int) -> Float[Array, "B N G H X"]:
    """The inverse of `_together`."""
    rows, groups, _, width = x.shape
    if rows == inputs:
        return x.reshape(inputs, groups, decodes, -1, width).swapaxes(1, 2)
    return x.reshape(inputs, decodes, groups, -1, width)
