"""What is added to attention's scores, described by numbers of Q + S rather than Q * S.

T5's relative bias is a function of the distance, so a block of scores needs a strip of Q + S - 1 numbers of each head.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from adalink_jax.models.structs import Struct

MASKED = -1e10  # added to the scores of keys that must not be seen; t5x's value
FILLING = -1e30  # of keys that fill up a length: less than any sum of masks, so their weight is 0 in every row


class Bias(Struct):
    """What is added to the scores.

    Attributes:
      relative: float32, by distance: entry `s - q + Q - 1` is for key `s` and query `q`, counted from 0. None adds nothing.
      keys: which keys exist; None means all.
      first: position of the first query, where no query may see later keys; None lets every query see every key.
      window: how many positions before and after its own a query sees; None means all. Layers of one stack may differ in it.
      exempt: keys before this one are seen whatever the window; None exempts none.
      query_segments, key_segments: a query sees keys of its own segment only; None, both, for one segment.
      stored: what `relative` adds, in its place, where the reference is not to compute it in every layer (see `for_stack`).
    """

    relative: Float[Array, "H distances"] | None = None
    keys: Bool[Array, "B S"] | None = None
    first: Int[Array, ""] | None = None
    window: Int[Array, "2"] | None = None
    exempt: Int[Array, ""] | None = None
    query_segments: Int[Array, "B Q"] | None = None
    key_segments: Int[Array, "B S"] | None = None
    stored: Float[Array, "#H Q S"] | None = None

    @property
    def same_for_queries(self) -> bool:
        """Whether the queries of a row all get the same added."""
        return all(x is None for x in (self.relative, self.first, self.window, self.query_segments, self.stored))


def masked(allowed: Bool[Array, "..."]) -> Float[Array, "..."]:
    """0 where a key may be seen, else `MASKED`."""
    return jnp.where(allowed, 0.0, MASKED)


def of_segments(queries: Int[Array, "... Q"], keys: Int[Array, "... S"]) -> Float[Array, "... Q S"]:
    """What is added for the segments of queries and keys."""
    return masked(queries[..., :, None] == keys[..., None, :])


def of_rows(bias: Bias, start: Int[Array, ""] | int, queries: int, keys: int) -> Float[Array, "#H queries S"] | None:
    """What is added to the scores of queries `start`, `start + 1`, ... of all rows of a batch; None if nothing is."""
    added = bias.stored if bias.relative is None else diagonals(bias.relative, start, queries, keys)
    if bias.first is not None or bias.window is not None:
        query = (0 if bias.first is None else bias.first) + start + jnp.arange(queries)
        seen = masked(sees(jnp.arange(keys), query[:, None], bias.first is not None, bias.window, bias.exempt))[None]
        added = seen if added is None else added + seen
    return added


def sees(
    key: Int[Array, "..."], query: Int[Array, "..."], causal: bool, window: Any = None, exempt: Any = None
) -> Bool[Array, "..."]:
    """Whether a query sees a key, by their positions; `window` and `exempt` are as in `Bias`."""
    distance = key - query
    allowed = distance <= 0 if causal else jnp.ones_like(distance, bool)
    if window is None:
        return allowed
    inside = (distance >= -window[0]) & (distance <= window[1])
    return allowed & (inside if exempt is None else inside | (key < exempt))


def diagonals(
    relative: Float[Array, "H distances"], start: Int[Array, ""] | int, queries: int, keys: int
) -> Float[Array, "H queries S"]:
    """The relative bias of queries `start`, `start + 1`, ...: row after row, a window of `relative` that moves to the left."""
    zero = relative.shape[1] - keys  # the entry of query 0 and key 0
    row = lambda query: jax.lax.dynamic_slice_in_dim(relative, zero - query, keys, axis=1)
    return jax.vmap(row, out_axes=1)(start + jnp.arange(queries))


def capped(products: Float[Array, "..."], softcap: float | None) -> Float[Array, "..."]:
    """`softcap * tanh(products / softcap)`; None leaves the products as they are."""
    return products if softcap is None else softcap * jnp.tanh(products / softcap)


def without_symbols(arguments: Sequence[Any]) -> tuple[Any, tuple[()] | None]:
    """What the forward function of a `custom_vjp` with `symbolic_zeros` is called with: query, key, value, and bias.

    Returns:
      The values, and whether the relative bias is trained, in a form that is saved in the structure, which is static: `()`, or None.
    """
    is_primal = lambda x: isinstance(x, jax.custom_derivatives.CustomVJPPrimal)
    relative = arguments[3].relative
    values = jax.tree.map(lambda x: x.value, arguments, is_leaf=is_primal)
    return values, () if relative is not None and relative.perturbed else None
