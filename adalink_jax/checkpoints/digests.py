"""Digests of leaves and fingerprints of base models: integer checksums, computed on the devices where the leaves are.

    checksum(x) = (sum_i bits(x_i) * a_i  mod 2^32,  sum_i bits(x_i) * b_i  mod 2^32),   a_i, b_i odd, by position i

Integer sums do not depend on their order, so the checksum is the same for any sharding. The weights are odd, so flipping any
one bit of one value changes both sums.
"""

import functools
import hashlib
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import UInt

from adalink_jax import parallel
from adalink_jax.checkpoints.adapter_facts import BaseReference
from adalink_jax.checkpoints.source import Source
from adalink_jax.errors import CheckpointError
from adalink_jax.models import paths
from adalink_jax.models.quantised import dequantised


def _checksum(bits: UInt[jax.Array, "..."]) -> UInt[jax.Array, "2"]:
    """The two sums, uint32, of unsigned integers of any shape."""
    bits = bits.astype(jnp.uint32)
    position, stride = jnp.zeros((), jnp.uint32), 1
    for dim in reversed(range(bits.ndim)):
        position = position + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, dim) * jnp.uint32(stride % 2**32)
        stride *= bits.shape[dim]
    first = position * jnp.uint32(0x9E3779B2) + jnp.uint32(1)
    second = (position ^ (position >> 15)) * jnp.uint32(0x85EBCA6A) + jnp.uint32(0xC2B2AE35)
    # One reduction of two operands: XLA's CPU compiler fuses it, but would store the operands of two separate sums.
    zero = jnp.uint32(0)
    add = lambda a, b: (a[0] + b[0], a[1] + b[1])
    return jnp.stack(
        jax.lax.reduce((bits * (first | 1), bits * (second | 1)), (zero, zero), add, tuple(range(bits.ndim)))
    )


def _bits(x: jax.Array) -> UInt[jax.Array, "..."]:
    width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    return x if x.dtype == width else jax.lax.bitcast_convert_type(x, width)


@functools.partial(jax.jit, static_argnames=("is_stacked", "rounded"))
def _leaf_checksums(x: Any, is_stacked: bool, rounded: bool) -> UInt[jax.Array, "layers 2"]:
    """One checksum per layer of a stack, or one in all."""
    if rounded:
        x = dequantised(x).astype(jnp.bfloat16)
    return jax.vmap(_checksum)(_bits(x)) if is_stacked else _checksum(_bits(x))[None]


class Checksums:
    """Checksums of leaves that come one after the other; none is held here, and nothing waits for a device before `by_name`.

    Attributes:
      rounded: whether the values are rounded to bfloat16 first, or their exact bits count.
    """

    def __init__(self, rounded: bool):
        self.rounded = rounded
        self._sums: list[tuple[dict[str, tuple[int, ...]], jax.Array]] = []

    def add(self, name: str, leaf: Any) -> None:
        """Adds a leaf by its name in memory: an array of 1, 2 or 4 bytes, or, rounded, a `Quantised` one."""
        shapes = paths.unscanned_shapes({name: leaf})
        self._sums.append((shapes, parallel.settle(_leaf_checksums(leaf, name not in shapes, self.rounded))))

    def by_name(self) -> dict[str, str]:
        """The shape and the checksum of every leaf, by unscanned name."""
        out = {}
        for shapes, sums in self._sums:
            for (unscanned, shape), (first, second) in zip(shapes.items(), parallel.to_host(sums)):
                out[unscanned] = f"{'x'.join(map(str, shape))} {first:08x}{second:08x}"
        return dict(sorted(out.items()))


def _named_checksums(leaves: Iterable[tuple[str, Any]], rounded: bool) -> dict[str, str]:
    checksums = Checksums(rounded)
    for name, leaf in leaves:
        checksums.add(name, leaf)
    return checksums.by_name()


@functools.cache
def note_unverified(what: str, writer: str) -> None:
    """Says, once, that `what` states no digests, because `writer` wrote it."""
    logging.getLogger(__name__).warning(
        f"{what} is unverified: it states no digests, so damage cannot be found, as it was written by {writer}."
    )


def digests(leaves: Mapping[str, Any]) -> dict[str, str]:
    """The shape and the checksum of the exact bits of every leaf, by unscanned name.

    Args:
      leaves: `{name in memory: array}`, flat or nested, of dtypes of 1, 2 or 4 bytes.
    """
    return _named_checksums(paths.flatten(leaves).items(), rounded=False)


def fingerprint(params: Mapping[str, Any]) -> str:
    """The SHA-256 (hex) of a base model's digests, of its weights rounded to bfloat16.

    It is the same for float32 and bfloat16 copies, scanned and unrolled, any sharding, and any format of file. A quantised model
    has another than the one that it was made from: that of its dequantised values.

    Args:
      params: the backbone's `{name in memory: array or Quantised}` without the leading `backbone/`, flat or nested.
    """
    return _fingerprint_of(paths.flatten(params).items())


def reference_of_source(source: Source) -> BaseReference:
    """What an adapter's facts state of an opened checkpoint's model; reads all of it."""
    return BaseReference(source.name, fingerprint_of_source(source), parent=source.parent, precision=source.precision)


def fingerprint_of_source(source: Source) -> str:
    """The `fingerprint` of an opened checkpoint, with one leaf in memory at a time."""
    return marks_of_source(source, None)[0]


def marks_of_source(source: Source, dtype: str | None) -> tuple[str, dict[str, str]]:
    """The `fingerprint` of an opened checkpoint, and the `digests` of its leaves once they are stored in `dtype`.

    Each leaf is read once, and one is in memory at a time. None keeps each leaf's dtype; leaves of 8 bytes have no digest.

    Raises:
      CheckpointError: if the values are not those whose digests or fingerprint the checkpoint states.
    """
    damaged = lambda what: CheckpointError(
        f"{what} in {source.path} does not have the digest that its file states; copy or write it again."
    )
    rounded: dict[str, str] = {}
    exact: dict[str, str] = {}
    for name, leaf in source.leaves.items():
        value = leaf.whole()
        rounded |= _named_checksums([(name, value)], rounded=True)
        if name in source.digests and digests({name: value})[name] != source.digests[name]:
            raise damaged(leaf.origin)
        stored = value if dtype is None else value.astype(dtype)
        if stored.dtype.itemsize < 8:
            exact |= digests({name: stored})
    mark = joined(rounded)
    if source.fingerprint not in (None, mark):
        raise CheckpointError(
            f"The weights in {source.path} do not have the fingerprint that it states; copy or write it again."
        )
    return mark, exact


def _fingerprint_of(leaves: Iterable[tuple[str, Any]]) -> str:
    return joined(_named_checksums(leaves, rounded=True))


def joined(checksums: Mapping[str, str]) -> str:
    """The fingerprint of a base model with these `Checksums`, rounded, by unscanned name."""
    lines = [f"{name} {checksum}" for name, checksum in sorted(checksums.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
