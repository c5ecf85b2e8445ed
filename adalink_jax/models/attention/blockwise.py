"""Attention by blocks of queries, in plain JAX: the scores of a block are computed, used and forgotten.

The backward pass computes them again from the queries' maxima and sums (Rabe and Staats, 2021, arXiv:2112.05682; Dao et al.,
2022, arXiv:2205.14135): no array has both Q and S. The relative bias gets a gradient only where its table is trained.

Arrays are cut into blocks with the heads first: a head's relative bias serves all rows.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float, Int, Shaped

from adalink_jax.models.attention.bias import Bias, capped, diagonals, masked, of_rows, of_segments, without_symbols

_TILE = 2**18  # scores of one row and head that are computed together: 1 MB, which a core's cache holds
_TILES = 2**24  # of all rows and heads
_LEAST_QUERIES = 8  # of a block


class Blocks(NamedTuple):
    """How `blockwise` computes.

    Attributes:
      softcap: see `attend`.
      one_tile: compute the scores of one row and head at a time, which is best on a CPU; else those of all rows and heads.
    """

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
def blockwise(
    blocks: Blocks,
    query: Float[Array, "B H Q K"],
    key: Float[Array, "B H S K"],
    value: Float[Array, "B H S K"],
    bias: Bias,
) -> Float[Array, "B H Q K"]:
    """`attend` without an array of the scores; `bias.stored` is None."""
    return _forward(blocks, query, key, value, bias)[0]


def product(
    x: Float[Array, "n m"], y: Float[Array, "k l"], contracted: tuple[int, int]
) -> Float[Array, "rows columns"]:
    """The float32 product of two matrices over an axis of each. Mosaic refuses a precision for bfloat16, whose products are exact."""
    axes = (contracted[:1], contracted[1:])
    precision = None if x.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(x, y, (axes, ((), ())), precision=precision, preferred_element_type=jnp.float32)


def recomputed_scores(query: Float[Array, "Q K"], key: Float[Array, "S K"]) -> Float[Array, "Q S"]:
    """Products that the forward pass has computed already; `training.flops` does not count a function of this name."""
    return product(query, key, (1, 1))


class _Parts(NamedTuple):
    """The arguments as the loops take them: queries of a head in blocks, keys and values of a head, what rows add."""

    query: Float[Array, "H number B block K"]
    key: Float[Array, "H B S K"]
    value: Float[Array, "H B S K"]
    relative: Float[Array, "H distances"]  # of width 0 if nothing is added
    starts: Int[Array, " number"]
    query_segments: Int[Array, "number B block"] | None
    rows: tuple[Float[Array, "B S"], Int[Array, "B S"] | None]  # masks of keys, and their segments

    @classmethod
    def of(cls, blocks: Blocks, query: Array, key: Array, value: Array, bias: Bias) -> "_Parts":
        query, key, value = (x.swapaxes(0, 1) for x in (query, key, value))
        number = blocks.number(query, key)
        relative = jnp.zeros((query.shape[0], 0)) if bias.relative is None else bias.relative
        masks = jnp.zeros((key.shape[1], key.shape[2])) if bias.keys is None else masked(bias.keys)
        segments = None if bias.query_segments is None else _cut(bias.query_segments[None], number)[0]
        query = _cut(query, number)
        starts = jnp.arange(number) * query.shape[3]
        return cls(query, key, value, relative, starts, segments, (masks, bias.key_segments))

    def tile(self, bias: Bias) -> Callable[[Array, Array], Array | float]:
        """A function of one head's relative bias and a block's start: what is added to the scores [block, S]."""

        def tile(relative: Array, start: Array) -> Array | float:
            one_head = bias.replace(relative=None if bias.relative is None else relative[None])
            added = of_rows(one_head, start, self.query.shape[3], self.key.shape[2])
            return 0.0 if added is None else added[0]

        return tile


def _of_row(query_segments: Array | None, row: tuple[Array, Array | None]) -> Array:
    """What a row adds to the scores of a block."""
    mask, segments = row
    return mask if query_segments is None or segments is None else mask + of_segments(query_segments, segments)


def _cut(x: Shaped[Array, "H B Q ..."], number: int, filling: float = 0) -> Shaped[Array, "H number B block ..."]:
    """Cuts the queries into blocks, and fills up the last one."""
    block = -(-x.shape[2] // number)
    width = [(0, 0), (0, 0), (0, number * block - x.shape[2]), *[(0, 0)] * (x.ndim - 3)]
    x = jnp.pad(x, width, constant_values=filling)
    return x.reshape(*x.shape[:2], number, block, *x.shape[3:]).swapaxes(1, 2)


def _joined(x: Float[Array, "H number B block ..."], queries: int) -> Float[Array, "H B Q ..."]:
    """The inverse of `_cut`."""
    x = x.swapaxes(1, 2)
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])[:, :, :queries]


def _forward(
    blocks: Blocks, query: Array, key: Array, value: Array, bias: Bias
) -> tuple[Float[Array, "B H Q K"], tuple[Array, Array, Array]]:
    """The mixed values, and what the backward pass needs of the softmax: them, each query's maximum, one over its sum."""
    parts = _Parts.of(blocks, query, key, value, bias)
    tile = parts.tile(bias)

    def head(query: Array, key: Array, value: Array, relative: Array) -> Any:
        def step(_: None, part: Any) -> tuple[None, Any]:
            start, query, segments = part
            added = tile(relative, start)

            def row(query: Array, segments: Any, key: Array, value: Array, of_row: Any) -> tuple[Array, Array, Array]:
                products = jnp.dot(query, key.T, preferred_element_type=jnp.float32)
                scores = capped(products, blocks.softcap) + added + _of_row(segments, of_row)
                largest = jnp.max(scores, axis=-1)
                weights = jnp.exp(scores - largest[:, None])
                inverse = 1 / jnp.sum(weights, axis=-1)
                mixed = jnp.dot(weights.astype(value.dtype), value, preferred_element_type=jnp.float32)
                return (mixed * inverse[:, None]).astype(value.dtype), largest, inverse

            return None, blocks.map(row, query, segments, key, value, parts.rows)

        return jax.lax.scan(step, None, (parts.starts, query, parts.query_segments))[1]

    results = blocks.map(head, parts.query, parts.key, parts.value, parts.relative)
    mixed, largest, inverse = (_joined(x, query.shape[2]) for x in results)
    return mixed.swapaxes(0, 1), (mixed, largest, inverse)


def _forward_saving(blocks: Blocks, *arguments: Any) -> tuple[Float[Array, "B H Q K"], Any]:
    (query, key, value, bias), trained = without_symbols(arguments)
    softmax = checkpoint_name(_forward(blocks, query, key, value, bias)[1], "attention_softmax")
    return softmax[0].swapaxes(0, 1), (query, key, value, bias, softmax, trained)


def _backward(blocks: Blocks, saved: Any, gradient: Any) -> tuple[Array, Array, Array, Bias]:
    query, key, value, bias, softmax, trained = saved
    if isinstance(gradient, jax.custom_derivatives.SymbolicZero):
        gradient = jnp.zeros_like(query)
    dtype = query.dtype
    parts = _Parts.of(blocks, query, key, value, bias)
    tile = parts.tile(bias)
    block, keys = parts.query.shape[3], parts.key.shape[2]

    def head(query: Array, softmax: Any, gradient: Array, key: Array, value: Array, relative: Array) -> Any:
        def step(sums: Any, part: Any) -> tuple[Any, Array]:
            start, segments, *part = part
            added = tile(relative, start)
            of_distances = lambda relative: diagonals(relative[None], start, block, keys)[0]
            onto_distances = None if trained is None else jax.linear_transpose(of_distances, relative)

            def row(*row: Any) -> tuple[Array, Array, Array, Array | None]:
                query, (mixed, largest, inverse), gradient, segments, key, value, of_row = row
                products = jax.jit(recomputed_scores)(query, key)
                scores = capped(products, blocks.softcap) + added + _of_row(segments, of_row)
                weights = jnp.exp(scores - largest[:, None]) * inverse[:, None]
                d_weights = jnp.dot(gradient, value.T, preferred_element_type=jnp.float32)
                dots = lambda x, y: jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32), axis=-1, keepdims=True)
                d_scores = weights * (d_weights - dots(gradient, mixed))
                d_products = d_scores
                if blocks.softcap is not None:
                    d_products = d_scores * (1 - jnp.square(jnp.tanh(products / blocks.softcap)))
                d_products = d_products.astype(dtype)
                dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
                d_key, d_value = dot(d_products.T, query), dot(weights.astype(dtype).T, gradient)
                d_relative = onto_distances and onto_distances(d_scores)[0]
                return dot(d_products, key).astype(dtype), d_key, d_value, d_relative

            d_query, *d_rest = blocks.map(row, *part, segments, key, value, parts.rows)
            return jax.tree.map(jnp.add, sums, d_rest), d_query

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (key, value))
        d_relative = None if trained is None else jnp.zeros((key.shape[0], *relative.shape))
        of_blocks = (parts.starts, parts.query_segments, query, softmax, gradient)
        return jax.lax.scan(step, [*zeros, d_relative], of_blocks)

    cut = functools.partial(_cut, number=len(parts.starts))
    mixed, largest, inverse = softmax
    softmax = cut(mixed), cut(largest, filling=jnp.inf), cut(inverse)  # no query of the filling has a weight
    arguments = (parts.query, softmax, cut(gradient.swapaxes(0, 1)), parts.key, parts.value, parts.relative)
    (d_key, d_value, d_relative), d_query = blocks.map(head, *arguments)
    d_bias = Bias(None if trained is None else jnp.sum(d_relative, axis=1))
    d_query, d_key, d_value = _joined(d_query, query.shape[2]), d_key.astype(dtype), d_value.astype(dtype)
    return d_query.swapaxes(0, 1), d_key.swapaxes(0, 1), d_value.swapaxes(0, 1), d_bias


blockwise.defvjp(_forward_saving, _backward, symbolic_zeros=True)
