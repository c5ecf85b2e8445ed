"""The one interface of attention, and the choice among its kinds."""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from adalink_jax.errors import UserError
from adalink_jax.models.attention.bias import Bias, capped, diagonals, masked, of_rows, of_segments
from adalink_jax.models.attention.blockwise import Blocks, blockwise
from adalink_jax.parallel import over_shards
from adalink_jax.typed_values import one_of

KINDS = ("auto", "reference", "blockwise")
AttentionKind = Annotated[str, one_of(*KINDS)]
_WORTH = 2**16  # scores of a row and head; fewer are stored as fast


def attend(
    query: Float[Array, "B H Q K"],
    key: Float[Array, "B H S K"],
    value: Float[Array, "B H S K"],
    bias: Bias,
    kind: str = "auto",
    window: int | None = None,
    softcap: float | None = None,
) -> Float[Array, "B H Q K"]:
    """Attends. Scores and softmax are float32; a query that may see no key gets the mean of all values.

    Args:
      query: queries, already scaled.
      key: keys.
      value: values.
      bias: what is added to the scores.
      kind: "reference", "blockwise", or "auto": blockwise on a CPU for all but short inputs, else the reference.
      window: a query sees only keys that are nearer than this; None means all.
      softcap: caps the products: `softcap * tanh(q k^T / softcap)`, before the bias. None means no cap.

    Returns:
      The mixed values, in their dtype.

    Raises:
      UserError: for another kind.
    """
    if _kind(kind, query.shape[2], key.shape[2]) == "reference":
        return reference(query, key, value, bias, window, softcap)
    blocks, split, rows = Blocks(window, softcap, one_tile=_platform() == "cpu"), ("batch", "heads"), ("batch",)
    return over_shards(
        lambda query, key, value, *parts: blockwise(blocks, query, key, value, Bias(*parts)),
        (query, key, value, bias.relative, bias.keys, bias.first, bias.query_segments, bias.key_segments),
        (split, split, split, ("heads",), rows, (), rows, rows),
        split,
    )


def for_stack(bias: Bias, kind: str, queries: int, keys: int) -> Bias:
    """A bias that all layers of a stack share: for the reference, its relative part is computed once, [H, Q, S]."""
    if bias.relative is None or _kind(kind, queries, keys) != "reference":
        return bias
    return bias.replace(relative=None, stored=diagonals(bias.relative, 0, queries, keys))


def reference(
    query: Float[Array, "B H Q K"],
    key: Float[Array, "B H S K"],
    value: Float[Array, "B H S K"],
    bias: Bias,
    window: int | None = None,
    softcap: float | None = None,
) -> Float[Array, "B H Q K"]:
    """`attend` as its formula has it, with all scores in memory."""
    scores = jnp.einsum("bhqk,bhsk->bhqs", query, key, preferred_element_type=jnp.float32)
    scores = capped(scores, softcap)
    if (added := of_rows(bias, 0, query.shape[2], key.shape[2], window)) is not None:
        scores = scores + added
    if bias.keys is not None:
        scores = scores + masked(bias.keys)[:, None, None, :]
    if bias.query_segments is not None and bias.key_segments is not None:
        scores = scores + of_segments(bias.query_segments, bias.key_segments)[:, None]
    return jnp.einsum("bhqs,bhsk->bhqk", nn.softmax(scores).astype(value.dtype), value)


def _kind(kind: str, queries: int, keys: int) -> str:
    if kind not in KINDS:
        raise UserError(f"ATTENTION is {kind!r}; it must be one of {', '.join(KINDS)}.")
    if kind != "auto":
        return kind
    return "blockwise" if _platform() == "cpu" and queries * keys >= _WORTH else "reference"


def _platform() -> str:
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
