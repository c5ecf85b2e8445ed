"""Attention by cuDNN's fused kernel for NVIDIA GPUs, through `jax.nn.dot_product_attention`: scores are not stored.

cuDNN takes what is added to the scores as an array. What positions add (relative bias, causal mask, window) is the same for all
rows, so it is [1, H, Q, S]. Masks of keys differ between rows, and an array of them would have all scores: instead, queries get one more
column, of ones, and keys one of masks. cuDNN computes a gradient of the array whenever there is one, of a frozen bias too.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from adalink_jax.models.attention.bias import FILLING, Bias, masked, of_rows

MULTIPLE = 8  # of which cuDNN takes head widths


def filled_width(width: int, masks: bool) -> int:
    """The head width that cuDNN gets, with a column for the masks of keys."""
    return -(-(width + masks) // MULTIPLE) * MULTIPLE


def fused(
    query: Float[Array, "B H Q K"],
    key: Float[Array, "B H S K"],
    value: Float[Array, "B H S K"],
    bias: Bias,
) -> Float[Array, "B H Q K"]:
    """`attend` for bfloat16, without softcap and segments; `bias.stored` is None. Lengths and widths are filled up as cuDNN needs."""
    rows, _, queries, width = query.shape
    keys = key.shape[2]
    added = of_rows(bias, 0, queries, keys)
    odd_query, odd_key = (0, 0) if added is None else (queries % 2, keys % 2)
    masks = None
    if bias.keys is not None or odd_key:
        masks = jnp.zeros((rows, keys)) if bias.keys is None else masked(bias.keys)
        masks = jnp.pad(masks, ((0, 0), (0, odd_key)), constant_values=FILLING)[:, None].astype(key.dtype)
    columns = filled_width(width, masks is not None) - width
    fill = lambda x, odd: jnp.pad(x, ((0, 0), (0, 0), (0, odd), (0, columns)))
    query, key, value = fill(query, odd_query), fill(key, odd_key), fill(value, odd_key)
    if masks is not None:
        query, key = query.at[..., width].set(1), key.at[..., width].set(masks)
    if added is not None:
        added = jnp.pad(added, ((0, 0), (0, odd_query), (0, odd_key)))[None].astype(query.dtype)
    mixed = jax.nn.dot_product_attention(
        *(x.swapaxes(1, 2) for x in (query, key, value)), bias=added, scale=1.0, implementation="cudnn"
    )
    return mixed.swapaxes(1, 2)[:, :, :queries, :width]
