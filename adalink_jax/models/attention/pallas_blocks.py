"""What the programs of the Pallas kernels see: blocks, filled lengths, and what is added to a block of scores [keys, queries].

The relative bias of a block depends only on how far it is from the diagonal. `roll_strip` writes, once a head, a block of rows in which
every block's bias is a range of columns; `unroll_strip` is its transpose.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from adalink_jax.models.attention.bias import FILLING, Bias, masked, sees

LANES = 128
_BLOCK = 512  # queries or keys
_STRIP = 2**21  # numbers of the block of rows that has the relative bias: 8 MB
_ROLLED = 32  # of its rows that are written together


class Kernel(NamedTuple):
    """How the kernels compute; see `attend`."""

    softcap: float | None


class Sizes(NamedTuple):
    """Sizes of the blocks, and filled lengths, which are multiples of them."""

    query_block: int
    key_block: int
    queries: int
    keys: int

    @classmethod
    def of(cls, query: Array, key: Array, bias: Bias) -> "Sizes":
        queries, keys = query.shape[2], key.shape[2]
        query_block = _block(queries, _BLOCK)
        filled = _filled(queries, query_block)
        key_block = _block(keys, _BLOCK)
        if bias.relative is not None:
            key_block = _block(keys, max(min(_STRIP // (filled + keys) // LANES * LANES, _BLOCK), LANES))
        return cls(query_block, key_block, filled, _filled(keys, key_block))

    @property
    def columns(self) -> int:
        """Columns of the block of rows that has the relative bias."""
        return self.queries + self.keys - self.key_block


def _block(length: int, most: int) -> int:
    """The block that fills up little and makes few steps; a step costs as much as some 64 positions."""
    blocks = range(LANES, min(most, _filled(length, LANES)) + 1, LANES)
    return min(blocks, key=lambda block: _filled(length, block) * (1 + 64 / block))


def _filled(length: int, block: int) -> int:
    return -(-length // block) * block


def fill(x: Array, length: int, axis: int = 2, filling: float = 0) -> Array:
    """Fills an axis up to `length`."""
    width = [(0, length - x.shape[i] if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, width, constant_values=filling) if length != x.shape[axis] else x


class Side(NamedTuple):
    """The queries, or the keys, that a program (head, row, step) of a kernel sees: a block at each step, or all of a row."""

    length: int
    by_step: bool

    def vectors(self, width: int) -> pl.BlockSpec:
        """Blocks of an array [B, H, length, width]."""
        return pl.BlockSpec((1, 1, self.length, width), lambda h, b, i: (b, h, i * self.by_step, 0))

    def numbers(self) -> pl.BlockSpec:
        """Blocks of an array [B, H, 1, length]."""
        return pl.BlockSpec((1, 1, 1, self.length), lambda h, b, i: (b, h, 0, i * self.by_step))

    def of_rows(self, x: Array | None) -> pl.BlockSpec | None:
        """Blocks of an array [B, 1, length], or [1, 1, length] for all rows."""
        if x is None:
            return None
        rows = x.shape[0]
        return pl.BlockSpec((1, 1, self.length), lambda h, b, i: (b if rows > 1 else 0, 0, i * self.by_step))


class Added(NamedTuple):
    """What is added to the scores, as the kernels take it (in them, references to blocks of it); None adds nothing.

    Attributes:
      first, window, exempt: [1], [2] and [1], see `Bias`.
      strip: [H, 1, queries + keys], the relative bias: entry `q - s + keys - 1` is for query `q` and key `s`.
      masks: [B, 1, keys], or [1, 1, keys] for filled keys only.
      query_segments, key_segments: [B, 1, queries], [B, 1, keys].
    """

    first: Any
    window: Any
    exempt: Any
    strip: Any
    masks: Any
    query_segments: Any
    key_segments: Any

    @classmethod
    def of(cls, bias: Bias, sizes: Sizes, keys: int) -> "Added":
        strip, masks, of_queries, of_keys = None, None, bias.query_segments, bias.key_segments
        if bias.relative is not None:
            filled = (sizes.keys - keys, sizes.queries + keys - bias.relative.shape[1])
            strip = jnp.pad(bias.relative[:, None, ::-1], ((0, 0), (0, 0), filled))
        if bias.keys is not None or sizes.keys != keys:
            masks = jnp.zeros((1, keys)) if bias.keys is None else masked(bias.keys)
            masks = fill(masks[:, None], sizes.keys, filling=FILLING)
        if of_queries is not None and of_keys is not None:
            of_queries, of_keys = fill(of_queries[:, None], sizes.queries), fill(of_keys[:, None], sizes.keys)
        first, exempt = (None if x is None else x[None] for x in (bias.first, bias.exempt))
        return cls(first, bias.window, exempt, strip, masks, of_queries, of_keys)

    def specs(self, queries: Side, keys: Side) -> list[pl.BlockSpec]:
        """The blocks of the arrays that are there."""
        numbers = [None if x is None else pl.BlockSpec(memory_space=pltpu.SMEM) for x in self[:3]]
        strip = None if self.strip is None else pl.BlockSpec((1, 1, self.strip.shape[2]), lambda h, b, i: (h, 0, 0))
        rows = keys.of_rows(self.masks), queries.of_rows(self.query_segments), keys.of_rows(self.key_segments)
        return [spec for spec in (*numbers, strip, *rows) if spec is not None]

    def to_scores(
        self, sizes: Sizes, rolled: Any, start: tuple[Any, Any], key_part: Any, query_part: Any
    ) -> Array | float:
        """What is added to the block of scores that starts at `start`, a key and a query; the parts are of the references."""
        key, query = start
        added = 0.0
        if rolled is not None:
            column = pl.multiple_of(query - key + sizes.keys - sizes.key_block, LANES)
            added = rolled[:, pl.ds(column, sizes.query_block)]
        if self.first is not None or self.window is not None:
            shape = sizes.key_block, sizes.query_block
            position = lambda axis: jax.lax.broadcasted_iota(jnp.int32, shape, axis)
            query = query + (0 if self.first is None else self.first[0])
            exempt = None if self.exempt is None else self.exempt[0]
            seen = sees(position(0) + key, position(1) + query, self.first is not None, self.window, exempt)
            added = added + masked(seen)
        if self.masks is not None:
            added = added + self.masks[0, :, key_part].reshape(-1, 1)
        if self.query_segments is not None:
            of_keys, of_queries = self.key_segments[0, :, key_part], self.query_segments[0, :, query_part]
            added = added + masked(of_keys.reshape(-1, 1) == of_queries)
        return added


def roll_strip(strip: Any, rolled: Any, sizes: Sizes) -> None:
    """Writes the strip once for each row, which is a key of a block, each row a column further to the right."""
    length = strip.shape[2]

    def write(i: Array, _: None) -> None:
        row = pl.multiple_of(i * _ROLLED, _ROLLED)
        rows = jnp.broadcast_to(strip[0], (_ROLLED, length))
        moved = pltpu.roll(rows, length - sizes.key_block + 1 + row, 1, stride=1, stride_axis=0)
        rolled[pl.ds(row, _ROLLED)] = moved[:, : sizes.columns]

    jax.lax.fori_loop(0, sizes.key_block // _ROLLED, write, None)


def unroll_strip(d_rolled: Any, d_strip: Any, sizes: Sizes) -> None:
    """The gradient of the strip: what `roll_strip` wrote from each of its numbers is summed."""
    length = d_strip.shape[2]
    d_strip[0] = jnp.zeros((1, length))

    def add(i: Array, _: None) -> None:
        row = pl.multiple_of(i * _ROLLED, _ROLLED)
        rows = jnp.concatenate([d_rolled[pl.ds(row, _ROLLED)], jnp.zeros((_ROLLED, sizes.key_block))], axis=1)
        # A roll moves later rows further to the right, so the rows are turned around.
        rows = jnp.concatenate([rows[i : i + 1] for i in reversed(range(_ROLLED))])
        moved = pltpu.roll(rows, sizes.key_block - _ROLLED - row, 1, stride=1, stride_axis=0)
        d_strip[0] += jnp.sum(moved, axis=0, keepdims=True)

    jax.lax.fori_loop(0, sizes.key_block // _ROLLED, add, None)
