"""Integer checksums of parameters, computed where the parameters are, the same for any sharding.

    checksum(x) = (sum_i bits(x_i) * a_i  mod 2^32,  sum_i bits(x_i) * b_i  mod 2^32),   a_i, b_i odd, by position i

Integer sums do not depend on their order, so neither on the devices; as the weights are odd, a change of any one bit of
one value changes both sums.
"""

import functools
import hashlib
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from adalink_jax import parallel
from adalink_jax.models import paths


def _checksum(bits: jax.Array) -> jax.Array:
    """Unsigned integers of any shape -> uint32 [2]."""
    bits = bits.astype(jnp.uint32)
    position, stride = jnp.zeros((), jnp.uint32), 1
    for dim in reversed(range(bits.ndim)):
        position = position + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, dim) * jnp.uint32(stride % 2**32)
        stride *= bits.shape[dim]
    first = position * jnp.uint32(0x9E3779B2) + jnp.uint32(1)
    second = (position ^ (position >> 15)) * jnp.uint32(0x85EBCA6A) + jnp.uint32(0xC2B2AE35)
    # One reduction of two operands: XLA's CPU compiler fuses it, and would store the operands of two separate sums.
    zero = jnp.uint32(0)
    add = lambda a, b: (a[0] + b[0], a[1] + b[1])
    return jnp.stack(
        jax.lax.reduce((bits * (first | 1), bits * (second | 1)), (zero, zero), add, tuple(range(bits.ndim)))
    )


def _bits(x: jax.Array) -> jax.Array:
    width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    return x if x.dtype == width else jax.lax.bitcast_convert_type(x, width)


@functools.partial(jax.jit, static_argnames=("layers", "rounded"))
def _leaf_checksums(x, layers: bool, rounded: bool):
    if rounded:
        x = x.astype(jnp.bfloat16)
    return jax.vmap(_checksum)(_bits(x)) if layers else _checksum(_bits(x))[None]


def _named_checksums(leaves: Iterable[tuple[str, jax.Array]], rounded: bool) -> dict[str, str]:
    pending = {}
    for name, leaf in leaves:
        names = paths.unscanned_names(name, leaf.shape)
        pending[name] = names, leaf.shape, parallel.settle(_leaf_checksums(leaf, names != [name], rounded))
    out = {}
    for name, (names, shape, sums) in pending.items():
        shape = shape if names == [name] else shape[1:]
        for each, (first, second) in zip(names, parallel.to_host(sums)):
            out[each] = f"{'x'.join(map(str, shape))} {first:08x}{second:08x}"
    return dict(sorted(out.items()))


def digests(tree) -> dict[str, str]:
    """Unscanned name -> shape and checksum of the exact bits of every leaf (dtypes of 1, 2 or 4 bytes)."""
    return _named_checksums(paths.flatten(tree).items(), rounded=False)


def fingerprint(params) -> str:
    """SHA-256 (hex) of a base model's weights rounded to bfloat16, under their unscanned names.

    The same for float32 and bfloat16 copies, scanned and unrolled, any sharding, any format of file.

    Args:
      params: the backbone's tree (names without the leading `backbone/`).
    """
    return fingerprint_of(paths.flatten(params).items())


def fingerprint_of_source(source) -> str:
    """`fingerprint` of an opened checkpoint, one leaf in memory at a time."""
    return fingerprint_of((name, leaf.whole()) for name, leaf in source.leaves.items())


def fingerprint_of(leaves: Iterable[tuple[str, jax.Array]]) -> str:
    """`fingerprint` of named leaves, which are asked for one after the other."""
    lines = [f"{name} {value}" for name, value in _named_checksums(leaves, rounded=True).items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
