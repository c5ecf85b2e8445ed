"""Products with weights that may be quantised. Their values exist only inside the product that uses them.

Invariant: what a product keeps for the backward pass are the codes and scales themselves, which are in memory anyway, and never
their values. (JAX's own derivative of a scan would keep the values of all layers.) No gradient of the weights exists.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from adalink_jax import parallel
from adalink_jax.models.quantised.arrays import Quantised, dequantised

Axes = tuple[str, str]  # logical names of a matrix's axes


def product(x: Float[Array, "... inputs"], weights: Any, dtype: str, axes: Axes) -> Float[Array, "... outputs"]:
    """`x @ weights` in `dtype`; of a table [V, D], whose products sum over D, `x @ weights.T`.

    Args:
      x: activations.
      weights: [inputs, outputs] as an array or `Quantised`, or a table [V, D] that is quantised.
      dtype: of the arithmetic and the result.
      axes: logical names of the axes of `weights`.
    """
    x = x.astype(dtype)
    if isinstance(weights, Quantised):
        return _product(x, weights, axes)
    return jnp.dot(x, weights.astype(dtype))


def rows(table: Any, ids: Int[Array | np.ndarray, "..."], dtype: str) -> Float[Array, "... D"]:
    """Rows of an embedding table [V, D], an array or `Quantised`, in `dtype`."""
    take = lambda leaf: jnp.take(leaf, ids, axis=0)
    if isinstance(table, Quantised):
        return dequantised(Quantised(take(table.codes), take(table.scales), table.axis), dtype)
    return take(table).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: Array, weights: Quantised, axes: Axes) -> Array:
    weights = _whole(weights, axes)
    if weights.matmul == "int8":
        return _int8_product(x, weights)
    return _contract(x, dequantised(weights, x.dtype), weights.axis)


def _forward(x: Array, weights: Quantised, axes: Axes) -> tuple[Array, Quantised]:
    return _product(x, weights, axes), weights


def _backward(axes: Axes, weights: Quantised, cotangent: Array) -> tuple[Array, None]:
    """The gradient of `x` by the dequantised weights, whichever way the product itself was computed."""
    # Else the compiler keeps what it made of the scales in the forward pass, four bytes for each value of a kernel in blocks.
    weights = dataclasses.replace(weights, scales=jax.lax.optimization_barrier(weights.scales))
    other = -1 if weights.axis == -2 else -2
    return _contract(cotangent, dequantised(_whole(weights, axes), cotangent.dtype), other), None


_product.defvjp(_forward, _backward)


def _contract(x: Array, matrix: Array, axis: int) -> Array:
    """Sums over the last axis of `x` and `axis` of `matrix`."""
    return jax.lax.dot_general(x, matrix, (((x.ndim - 1,), (2 + axis,)), ((), ())))


def gathered(leaf: Any, axes: Sequence[str | None]) -> Any:
    """A leaf, an array or `Quantised`, gathered over `data` (`parallel.gather`); of a quantised one the codes are sent."""
    if not isinstance(leaf, Quantised):
        return parallel.gather(leaf, axes)
    one_each = [name if size > 1 else None for name, size in zip(axes, leaf.scales.shape)]
    codes, scales = parallel.gather(leaf.codes, axes), parallel.gather(leaf.scales, one_each)
    return dataclasses.replace(leaf, codes=codes, scales=scales)


def _whole(weights: Quantised, axes: Axes) -> Quantised:
    """The matrix as products take it: under FSDP its codes are gathered, and not its values."""
    return gathered(weights, axes) if parallel.splits_parameters() else weights


def _int8_product(x: Array, weights: Quantised) -> Array:
    """The product in int8, summed in int32: each row of `x` is rounded to 127 steps of its largest value."""
    step = jnp.max(jnp.abs(x.astype(jnp.float32)), axis=-1, keepdims=True) / 127
    codes = jnp.round(x.astype(jnp.float32) / jnp.where(step == 0, 1, step)).astype(jnp.int8)
    dimensions = (((x.ndim - 1,), (2 + weights.axis,)), ((), ()))
    sums = jax.lax.dot_general(codes, weights.codes, dimensions, preferred_element_type=jnp.int32)
    return (sums.astype(jnp.float32) * step * weights.scales.astype(jnp.float32).reshape(-1)).astype(x.dtype)
