"""Attention's arithmetic, `softmax(q k^T + bias) v`, with a bias that is described rather than stored.

`reference` has the scores [B, H, Q, S] in memory. `blockwise` computes them a block of queries at a time, and again in the
backward pass (Rabe and Staats, 2021, arXiv:2112.05682; Dao et al., 2022, arXiv:2205.14135): no array of it has both Q and S.
T5's relative bias is a function of the distance, so a block needs Q + S - 1 numbers of each head, and a gradient of them only
where the table is trained.

Letters: B batch, Q queries, S keys, H heads, K head width.
"""

import functools
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from adalink_jax.errors import UserError
from adalink_jax.models.structs import Struct
from adalink_jax.parallel import over_shards
from adalink_jax.typed_values import one_of

KINDS = ("auto", "reference", "blockwise")
AttentionKind = Annotated[str, one_of(*KINDS)]
MASKED = -1e10  # added to the scores of keys that must not be seen; t5x's value
_TILE = 2**18  # scores of one row and head that are computed together: 1 MB, which a core's cache holds
_TILES = 2**24  # of all rows and heads
_LEAST_QUERIES = 8  # of a block
_WORTH = 2**16  # scores of a row and head; fewer are stored as fast


class Bias(Struct):
    """What is added to the scores.

    Attributes:
      relative: float32, by distance: entry `s - q + Q - 1` is for key `s` and query `q`, counted from 0. None adds nothing.
      keys: which keys exist; None means all.
      first: position of the first query, where no query may see later keys; None lets every query see every key.
      stored: what `relative` adds, in its place, where the reference is not to compute it in every layer (see `for_stack`).
    """

    relative: Float[Array, "H distances"] | None = None
    keys: Bool[Array, "B S"] | None = None
    first: Int[Array, ""] | None = None
    stored: Float[Array, "#H Q S"] | None = None


def attend(
    query: Float[Array, "B Q H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H K"],
    bias: Bias,
    kind: str = "auto",
    window: int | None = None,
    softcap: float | None = None,
) -> Float[Array, "B Q H K"]:
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
    if _kind(kind, query.shape[1], key.shape[1]) == "reference":
        return _reference(query, key, value, bias, window, softcap)
    blocks, split = _Blocks(window, softcap, one_tile=_platform() == "cpu"), ("batch", None, "heads", None)
    return over_shards(
        lambda query, key, value, *parts: _blockwise(blocks, query, key, value, Bias(*parts)),
        (query, key, value, bias.relative, bias.keys, bias.first),
        (split, split, split, ("heads", None), ("batch", None), ()),
        split,
    )


def for_stack(bias: Bias, kind: str, queries: int, keys: int) -> Bias:
    """A bias that all layers of a stack share: for the reference, its relative part is computed once, [H, Q, S]."""
    if bias.relative is None or _kind(kind, queries, keys) != "reference":
        return bias
    return bias.replace(relative=None, stored=_diagonals(bias.relative, 0, queries, keys))


def _kind(kind: str, queries: int, keys: int) -> str:
    if kind not in KINDS:
        raise UserError(f"ATTENTION is {kind!r}; it must be one of {', '.join(KINDS)}.")
    if kind != "auto":
        return kind
    return "blockwise" if _platform() == "cpu" and queries * keys >= _WORTH else "reference"


def _platform() -> str:
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


# --- the scores of some queries ---


def _masked(allowed: Bool[Array, "..."]) -> Float[Array, "..."]:
    return jnp.where(allowed, 0.0, MASKED)


def _added(
    bias: Bias, start: Int[Array, ""] | int, queries: int, keys: int, window: int | None
) -> Float[Array, "#H queries S"] | None:
    """What is added to the scores of queries `start`, `start + 1`, ... of all rows; None if nothing is."""
    added = bias.stored if bias.relative is None else _diagonals(bias.relative, start, queries, keys)
    if bias.first is not None or window is not None:
        distance = jnp.arange(keys) - (start + jnp.arange(queries))[:, None] - (0 if bias.first is None else bias.first)
        allowed = jnp.ones_like(distance, bool) if bias.first is None else distance <= 0
        positions = _masked(allowed if window is None else allowed & (abs(distance) < window))[None]
        added = positions if added is None else added + positions
    return added


def _diagonals(
    relative: Float[Array, "H distances"], start: Int[Array, ""] | int, queries: int, keys: int
) -> Float[Array, "H queries S"]:
    """The relative bias of queries `start`, `start + 1`, ...: row after row, a window of `relative` that moves to the left."""
    zero = relative.shape[1] - keys  # the entry of query 0 and key 0
    row = lambda query: jax.lax.dynamic_slice_in_dim(relative, zero - query, keys, axis=1)
    return jax.vmap(row, out_axes=1)(start + jnp.arange(queries))


def _capped(products: Float[Array, "..."], softcap: float | None) -> Float[Array, "..."]:
    return products if softcap is None else softcap * jnp.tanh(products / softcap)


def _reference(
    query: Array, key: Array, value: Array, bias: Bias, window: int | None, softcap: float | None
) -> Float[Array, "B Q H K"]:
    queries, keys = query.shape[1], key.shape[1]
    scores = jnp.einsum("bqhk,bshk->bhqs", query, key, preferred_element_type=jnp.float32)
    scores = _capped(scores, softcap)
    if (added := _added(bias, 0, queries, keys, window)) is not None:
        scores = scores + added
    if bias.keys is not None:
        scores = scores + _masked(bias.keys)[:, None, None, :]
    return jnp.einsum("bhqs,bshk->bqhk", nn.softmax(scores).astype(value.dtype), value)


# --- blocks of queries ---


class _Blocks(NamedTuple):
    """How `blockwise` is computed.

    Attributes:
      window, softcap: see `attend`.
      one_tile: compute the scores of one row and head at a time, which is best on a CPU; else those of all rows and heads.
    """

    window: int | None
    softcap: float | None
    one_tile: bool

    def map(self, function: Callable, *arguments: Any) -> Any:
        """Maps a function over axis 0 of its arguments."""
        if self.one_tile:
            return jax.lax.scan(lambda _, x: (None, function(*x)), None, arguments)[1]
        return jax.vmap(function)(*arguments)

    def number(self, query: Float[Array, "H B Q K"], key: Float[Array, "H B S K"]) -> int:
        """How many blocks the queries make."""
        heads, rows, queries, _ = query.shape
        scores = key.shape[2] * (1 if self.one_tile else heads * rows)
        most = _TILE if self.one_tile else _TILES
        return -(-queries // max(most // scores, _LEAST_QUERIES))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _blockwise(blocks: _Blocks, query: Array, key: Array, value: Array, bias: Bias) -> Float[Array, "B Q H K"]:
    return _forward(blocks, query, key, value, bias)[0]


def _heads_first(x: Float[Array, "B L H K"]) -> Float[Array, "H B L K"]:
    return x.transpose(2, 0, 1, 3)


def _rows_first(x: Float[Array, "H B L K"]) -> Float[Array, "B L H K"]:
    return x.transpose(1, 2, 0, 3)


def _cut(x: Float[Array, "H B Q ..."], number: int, filling: float = 0) -> Float[Array, "H number B block ..."]:
    """Cuts the queries into blocks, and fills up the last one."""
    block = -(-x.shape[2] // number)
    width = [(0, 0), (0, 0), (0, number * block - x.shape[2]), *[(0, 0)] * (x.ndim - 3)]
    x = jnp.pad(x, width, constant_values=filling)
    return x.reshape(*x.shape[:2], number, block, *x.shape[3:]).swapaxes(1, 2)


def _joined(x: Float[Array, "H number B block ..."], queries: int) -> Float[Array, "H B Q ..."]:
    """The inverse of `_cut`."""
    x = x.swapaxes(1, 2)
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])[:, :, :queries]


def _parts(
    blocks: _Blocks, query: Array, key: Array, value: Array, bias: Bias
) -> tuple[int, Array, Array, Array, Array, Array]:
    """The number of blocks; queries, keys and values with heads first; relative biases [H, distances]; masks of keys [B, S]."""
    query, key, value = map(_heads_first, (query, key, value))
    relative = jnp.zeros((query.shape[0], 0)) if bias.relative is None else bias.relative
    masks = jnp.zeros((query.shape[1], key.shape[2])) if bias.keys is None else _masked(bias.keys)
    return blocks.number(query, key), query, key, value, relative, masks


def _tile(blocks: _Blocks, bias: Bias, block: int, keys: int) -> Callable[[Array, Array], Array | float]:
    """A function of one head's relative bias and a block's start: what is added to the scores [block, S]."""

    def tile(relative: Array, start: Array) -> Array | float:
        one_head = bias.replace(relative=None if bias.relative is None else relative[None])
        added = _added(one_head, start, block, keys, blocks.window)
        return 0.0 if added is None else added[0]

    return tile


def _forward(
    blocks: _Blocks, query: Array, key: Array, value: Array, bias: Bias
) -> tuple[Float[Array, "B Q H K"], tuple[Array, Array, Array]]:
    """The mixed values, and what the backward pass needs of the softmax: them, each query's maximum, one over its sum."""
    queries, keys = query.shape[1], key.shape[1]
    number, query, key, value, relative, masks = _parts(blocks, query, key, value, bias)
    block = -(-queries // number)
    tile = _tile(blocks, bias, block, keys)

    def head(query: Array, key: Array, value: Array, relative: Array) -> Any:
        def step(_: None, part: tuple[Array, Array]) -> tuple[None, Any]:
            start, query = part
            added = tile(relative, start)

            def row(query: Array, key: Array, value: Array, mask: Array) -> tuple[Array, Array, Array]:
                products = jnp.dot(query, key.T, preferred_element_type=jnp.float32)
                scores = _capped(products, blocks.softcap) + added + mask
                largest = jnp.max(scores, axis=-1)
                weights = jnp.exp(scores - largest[:, None])
                inverse = 1 / jnp.sum(weights, axis=-1)
                mixed = jnp.dot(weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
                return (mixed * inverse[:, None]).astype(value.dtype), largest, inverse

            return None, blocks.map(row, query, key, value, masks)

        return jax.lax.scan(step, None, (jnp.arange(number) * block, query))[1]

    results = blocks.map(head, _cut(query, number), key, value, relative)
    mixed, largest, inverse = (_joined(x, queries) for x in results)
    return _rows_first(mixed), (mixed, largest, inverse)


def recomputed_scores(query: Float[Array, "Q K"], key: Float[Array, "S K"]) -> Float[Array, "Q S"]:
    """Products that the forward pass has computed already; `training.flops` does not count a function of this name."""
    return jnp.dot(query, key.T, preferred_element_type=jnp.float32)


def _forward_saving(blocks: _Blocks, *arguments: Any) -> tuple[Float[Array, "B Q H K"], Any]:
    is_primal = lambda x: isinstance(x, jax.custom_derivatives.CustomVJPPrimal)
    query, key, value, bias = jax.tree.map(lambda x: x.value, arguments, is_leaf=is_primal)
    relative = arguments[3].relative
    trained = () if relative is not None and relative.perturbed else None  # in the structure, which is static
    mixed, softmax = _forward(blocks, query, key, value, bias)
    return mixed, (query, key, value, bias, softmax, trained)


def _backward(blocks: _Blocks, saved: Any, gradient: Any) -> tuple[Array, Array, Array, Bias]:
    query, key, value, bias, softmax, trained = saved
    if isinstance(gradient, jax.custom_derivatives.SymbolicZero):
        gradient = jnp.zeros_like(query)
    queries, keys, dtype = query.shape[1], key.shape[1], query.dtype
    number, query, key, value, relative, masks = _parts(blocks, query, key, value, bias)
    block = -(-queries // number)
    gradient = _heads_first(gradient)
    tile = _tile(blocks, bias, block, keys)

    def head(query: Array, softmax: Any, gradient: Array, key: Array, value: Array, relative: Array) -> Any:
        def step(sums: Any, part: Any) -> tuple[Any, Array]:
            start, query, (mixed, largest, inverse), gradient = part
            added = tile(relative, start)
            diagonals = lambda relative: _diagonals(relative[None], start, block, keys)[0]
            onto_distances = None if trained is None else jax.linear_transpose(diagonals, relative)

            def row(*row: Array) -> tuple[Array, Array, Array, Array | None]:
                query, mixed, largest, inverse, gradient, key, value, mask = row
                products = jax.jit(recomputed_scores)(query, key)
                scores = _capped(products, blocks.softcap) + added + mask
                weights = jnp.exp(scores - largest[:, None]) * inverse[:, None]
                d_weights = jnp.dot(gradient, value.T, preferred_element_type=jnp.float32)
                product = lambda x, y: jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32), axis=-1, keepdims=True)
                d_scores = weights * (d_weights - product(gradient, mixed))
                d_products = d_scores
                if blocks.softcap is not None:
                    d_products = d_scores * (1 - jnp.square(jnp.tanh(products / blocks.softcap)))
                d_products = d_products.astype(dtype)
                dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
                d_key, d_value = dot(d_products.T, query), dot(weights.astype(dtype).T, gradient)
                d_relative = onto_distances and onto_distances(d_scores)[0]
                return dot(d_products, key).astype(dtype), d_key, d_value, d_relative

            d_query, *d_rest = blocks.map(row, query, mixed, largest, inverse, gradient, key, value, masks)
            return jax.tree.map(jnp.add, sums, d_rest), d_query

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (key, value))
        d_relative = None if trained is None else jnp.zeros((masks.shape[0], *relative.shape))
        parts = (jnp.arange(number) * block, query, softmax, gradient)
        return jax.lax.scan(step, [*zeros, d_relative], parts)

    cut = functools.partial(_cut, number=number)
    mixed, largest, inverse = softmax
    softmax = cut(mixed), cut(largest, filling=jnp.inf), cut(inverse)  # no query of the filling has a weight
    arguments = (cut(query), softmax, cut(gradient), key, value, relative)
    (d_key, d_value, d_relative), d_query = blocks.map(head, *arguments)
    d_bias = Bias(None if trained is None else jnp.sum(d_relative, axis=1))
    d_query, d_key, d_value = _joined(d_query, queries), d_key.astype(dtype), d_value.astype(dtype)
    return _rows_first(d_query), _rows_first(d_key), _rows_first(d_value), d_bias


_blockwise.defvjp(_forward_saving, _backward, symbolic_zeros=True)
