"""Quantised matrices: codes of eight bits or four, and a scale for every block of them.

    value = decoded(code) * scale          scale = bfloat16(extreme of the block / code of the extreme)

A block is `block` neighbouring values along the axis that a product sums over; by default int8 and fp8 have one block for
each output, int4 and nf4 blocks of 64. The extreme is the largest magnitude, and its code 127 (int8), 448 (fp8, which is float8_e4m3fn)
or 1 (nf4). int4 uses all of its 16 codes as llama.cpp's Q4_0 does: the extreme is the value of largest magnitude with its sign, its code is
-8, and the scale may be negative. nf4's 16 values are those of Dettmers et al., 2023 (QLoRA, arXiv:2305.14314, appendix E).

Invariant: `quantise(dequantised(x))` is `x`, to the bit: a bfloat16 scale times a whole code is exact in
float32, and nf4 finds its nearest value again.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import Array
from jaxtyping import Float

BLOCK = 64  # values that share a scale in four bits
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
# FROZEN_DTYPE -> dtype of the codes, code of the extreme
CODE_DTYPES = {
    "int8": (np.dtype(np.int8), 127.0),
    "fp8": (np.dtype(ml_dtypes.float8_e4m3fn), 448.0),
    "int4": (np.dtype(ml_dtypes.int4), -8.0),
    "nf4": (np.dtype(ml_dtypes.uint4), 1.0),
}
_NAMES = {dtype: name for name, (dtype, _) in CODE_DTYPES.items()}


@functools.partial(jax.tree_util.register_dataclass, data_fields=["codes", "scales"], meta_fields=["axis", "matmul"])
@dataclasses.dataclass(frozen=True)
class Quantised:
    """A quantised leaf of the frozen model, or a stack of them on axis 0. Either field may be abstract.

    Attributes:
      codes: [..., inputs, outputs], or [V, D] of an embedding table, in a dtype of `CODE_DTYPES`.
      scales: bfloat16, as `codes` with the blocks in place of `axis`.
      axis: the axis that products sum over, counted from the end: -2 of a kernel, -1 of a table.
      matmul: "int8" for products in int8, None for products of the dequantised values.
    """

    codes: Any
    scales: Any
    axis: int = -2
    matmul: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the values."""
        return self.codes.shape

    @property
    def ndim(self) -> int:
        """Number of axes of the values."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def sharding(self) -> Any:
        """Placement of the codes."""
        return self.codes.sharding

    @property
    def dtype(self) -> str:
        """Its name as FROZEN_DTYPE has it, "int8"; with the number of values in a block, "int4/64", where an output has several."""
        return self.kind if self.scales.shape[self.axis] == 1 else f"{self.kind}/{self.block}"

    @property
    def block(self) -> int:
        """How many values share a scale."""
        return self.shape[self.axis] // self.scales.shape[self.axis]

    @property
    def kind(self) -> str:
        """One of `CODE_DTYPES`."""
        return _NAMES[np.dtype(self.codes.dtype)]


def precision_of(leaves: Iterable[Any]) -> str | None:
    """How a model is stored, as `Quantised.dtype` of its leaf with the largest blocks; None if no leaf is quantised."""
    quantised = [leaf for leaf in leaves if isinstance(leaf, Quantised)]
    return max(quantised, key=lambda leaf: ("/" in leaf.dtype, leaf.block)).dtype if quantised else None


def bits_of(dtype: Any) -> int:
    """Bits that a value takes in memory and in files: 4 of the four-bit dtypes, which NumPy holds in a byte each."""
    dtype = np.dtype(dtype)
    return 4 if dtype in (np.dtype(ml_dtypes.int4), np.dtype(ml_dtypes.uint4)) else 8 * dtype.itemsize


def block_size(size: int, kind: str, block: int | None) -> int:
    """How many of `size` values share a scale: the largest divisor of `size` that is at most `block`.

    Args:
      size: values along the axis that products sum over.
      kind: one of `CODE_DTYPES`.
      block: QUANTISED_BLOCK; None means all of them for eight bits, and `BLOCK` for four.
    """
    most = min(size, block or (size if kind in ("int8", "fp8") else BLOCK))
    return next(n for n in range(most, 0, -1) if size % n == 0)


def quantise(
    values: Float[Array | np.ndarray, "..."], kind: str, block: int | None = None, axis: int = -2
) -> Quantised:
    """Quantises a matrix, or a stack of matrices.

    Args:
      values: [..., inputs, outputs], of any float dtype.
      kind: one of `CODE_DTYPES`.
      block: see `block_size`.
      axis: the axis that products sum over.
    """
    dtype, code = CODE_DTYPES[kind]
    inside = _in_blocks(jnp.asarray(values, jnp.float32), block_size(values.shape[axis], kind, block), axis)
    high, low = (reduce(inside, axis=axis, keepdims=True) for reduce in (jnp.max, jnp.min))
    extreme = jnp.where(high >= -low, high, low) if code < 0 else jnp.maximum(high, -low)
    scales = jnp.where(extreme == 0, 0, extreme / code).astype(jnp.bfloat16)  # not -0
    divisor = scales.astype(jnp.float32)
    scaled = inside / jnp.where(divisor == 0, 1, divisor)
    if kind == "nf4":
        borders = np.asarray([(low + high) / 2 for low, high in zip(NF4, NF4[1:])], np.float32)
        codes = jnp.searchsorted(borders, scaled, method="compare_all")
    elif kind == "fp8":
        codes = jnp.clip(scaled, -code, code)
    else:
        codes = jnp.clip(jnp.round(scaled), *((code, -code - 1) if code < 0 else (-code, code)))
    return Quantised(codes.astype(dtype).reshape(values.shape), jnp.squeeze(scales, axis), axis)


def dequantised(leaf: Any, dtype: Any = jnp.float32) -> Float[Array, "..."]:
    """The values of a leaf in `dtype`, whether it is quantised or not."""
    if not isinstance(leaf, Quantised):
        return jnp.asarray(leaf).astype(dtype)
    scales = leaf.scales.astype(jnp.float32)
    decoded = _nf4_values(leaf.codes) if leaf.kind == "nf4" else leaf.codes.astype(jnp.float32)
    if scales.shape[leaf.axis] == 1:
        return (decoded * scales).astype(dtype)
    inside = _in_blocks(decoded, leaf.block, leaf.axis)
    return (inside * jnp.expand_dims(scales, leaf.axis)).astype(dtype).reshape(leaf.shape)


def _in_blocks(values: Array, block: int, axis: int) -> Array:
    """[..., inputs, outputs] -> [..., blocks, block, outputs], for axis -2; the values of a block are on `axis`."""
    at = values.ndim + axis
    return values.reshape(*values.shape[:at], values.shape[at] // block, block, *values.shape[at + 1 :])


def _nf4_values(codes: Array) -> Float[Array, "..."]:
    """Looks codes up in `NF4` by a tree of selections, which compiles fast where a gather does not."""
    codes, values = codes.astype(jnp.int32), [jnp.float32(value) for value in NF4]
    for bit in range(4):
        is_set = (codes >> bit) & 1 == 1
        values = [jnp.where(is_set, high, low) for low, high in zip(values[::2], values[1::2])]
    return values[0]
