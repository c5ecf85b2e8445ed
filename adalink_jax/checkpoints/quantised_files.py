"""Quantised leaves in native base models: two tensors in the file, one `Leaf` of float32 values for all that reads it.

    NAME         codes: I8 (int8), F8_E4M3 (fp8), or U8 (int4, nf4: two codes a byte along the last axis, the first in the low bits;
                 where that axis is odd, the last high bits are 0)
    NAME_scale   scales: BF16, as the values with the blocks in place of the axis that products sum over

`base_config.json` states which leaves those are, with the values' shapes and axes (`QuantisedForm`). Reading dequantises the part that is
requested. Quantising what was read gives the file's codes and scales again, to the bit.

The digests of a native base are of the values. They find every flipped bit of the codes, but not of a scale, which flips bits of many values
at once (two flipped signs cancel in their sums): the SHA-256 of each tensor of scales is stated, and compared when the leaf is first read.
"""

import dataclasses
import functools
import math
import threading
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import jax
import ml_dtypes
import numpy as np
import pydantic

from adalink_jax.checkpoints.source import Source
from adalink_jax.errors import CheckpointError
from adalink_jax.files import safetensors_file
from adalink_jax.files.leaves import Index, Leaf, from_array
from adalink_jax.files.typed_json import Form
from adalink_jax.models.quantised import (
    CODE_DTYPES,
    NF4,
    Quantised,
    Storage,
    bits_of,
    quantise,
)

SCALE = "_scale"
REMEDY = "copy or write it again"
_BACKBONE = "backbone/"
_SCALES = np.dtype(ml_dtypes.bfloat16)
_FOUR_BITS = {
    "int4": np.asarray([*range(8), *range(-8, 0)], np.float32),
    "nf4": np.asarray(NF4, np.float32),
}  # code -> value before its scale
_Size = Annotated[int, pydantic.Field(ge=1)]
_quantise = functools.partial(jax.jit, static_argnames=("kind", "block", "axis"))(quantise)


class _Leaf(Form):
    shape: tuple[_Size, _Size]
    axis: Literal[-2, -1]


class QuantisedForm(Form):
    """`quantised` of `base_config.json`.

    Attributes:
      dtype: how the leaves are stored, as FROZEN_DTYPE.
      block, exact: QUANTISED_BLOCK and QUANTISED_EXACT of the conversion.
      leaves: name of a quantised leaf -> its values' shape, and the axis that products sum over.
      scales: name of a quantised leaf -> the `safetensors_file.digest` of its scales; empty until they are known.
    """

    dtype: Literal[tuple(CODE_DTYPES)]  # pyright: ignore[reportInvalidTypeForm]  # the names are there when pydantic reads it
    block: _Size | None
    exact: list[str]
    leaves: dict[str, _Leaf]
    scales: dict[str, str] = {}

    @property
    def codes_dtype(self) -> np.dtype:
        """Dtype of the tensor of codes."""
        return np.dtype(np.uint8) if self.dtype in _FOUR_BITS else CODE_DTYPES[self.dtype][0]


@dataclasses.dataclass(frozen=True)
class QuantisedModel:
    """A base model that is quantised while it is read.

    Attributes:
      source: its dequantised values, as a source of its own; `parent` is the fingerprint of the exact model.
      tensors: what the file holds.
      form: what `base_config.json` states of them, once all of `source` was read.
    """

    source: Source
    tensors: dict[str, Leaf]
    form: QuantisedForm


def quantised_model(source: Source, storage: Storage, parent: str) -> QuantisedModel:
    """The quantised form of an exact model; nothing is read yet, and one leaf is in memory at a time.

    Args:
      source: the exact model.
      storage: how its kernels are stored.
      parent: the fingerprint of `source`.

    Raises:
      CheckpointError: for a model that is quantised already, one without a kernel, and (when they are read) values that are not finite.
      UserError: for a rule that keeps nothing exact.
    """
    if source.precision is not None:
        raise CheckpointError(
            f"{source.path} is stored in {source.precision}, and quantised again it would lose twice; give the base that it was "
            f"made from."
        )
    exact = {_BACKBONE + name: jax.ShapeDtypeStruct(leaf.shape, np.float32) for name, leaf in source.leaves.items()}
    stored = {name.removeprefix(_BACKBONE): leaf for name, leaf in storage.stored(exact, ()).items()}
    wanted = {name: leaf for name, leaf in stored.items() if isinstance(leaf, Quantised)}
    if not wanted:
        raise CheckpointError(
            f"{source.path} has no kernel to quantise ({source.kind}); give a base model that this package knows "
            f"(`adalink inspect` shows its leaves)."
        )

    @functools.lru_cache(maxsize=1)  # codes and scales are written one after the other
    def pair(name: str) -> tuple[np.ndarray, np.ndarray]:
        values = source.leaves[name].whole()
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"{name} in {source.path} holds values that are not finite, which cannot be quantised."
            )
        leaf = _quantise(values, kind=wanted[name].kind, block=storage.block, axis=wanted[name].axis)
        codes, scales = np.asarray(leaf.codes), np.asarray(leaf.scales)
        form.scales[name] = safetensors_file.digest(name + SCALE, from_array(scales, name))
        return (_packed(codes) if bits_of(codes.dtype) == 4 else codes), scales

    leaves = {name: {"shape": leaf.shape, "axis": leaf.axis} for name, leaf in wanted.items()}
    form = QuantisedForm.model_validate(
        {"dtype": storage.dtype, "block": storage.block, "exact": list(storage.exact), "leaves": leaves}
    )
    tensors: dict[str, Leaf] = {}
    for name, leaf in source.leaves.items():
        parts = {name: leaf}
        if name in wanted:
            shapes = _codes_shape(form, name), wanted[name].scales.shape
            dtypes = form.codes_dtype, _SCALES
            read = lambda index, name, part: pair(name)[part][index]
            parts = {
                key: Leaf(shape, dtype, key, functools.partial(read, name=name, part=part), shape)
                for part, (key, shape, dtype) in enumerate(zip((name, name + SCALE), shapes, dtypes))
            }
        if clash := tensors.keys() & parts.keys():
            raise CheckpointError(f"{source.path} has a leaf {min(clash)}, where scales are stored; rename it.")
        tensors |= parts
    values = values_of(tensors, form.model_copy(update={"scales": {}}), source.path)
    model = dataclasses.replace(source, leaves=values, parent=parent, fingerprint=None, digests={})
    return QuantisedModel(model, tensors, form)


def values_of(tensors: Mapping[str, Leaf], form: QuantisedForm, path: str) -> dict[str, Leaf]:
    """The model's leaves: a quantised one is one `Leaf` of its values, float32.

    Args:
      tensors: what the file holds.
      form: what `base_config.json` states of them.
      path: the file, for errors.

    Raises:
      CheckpointError: for a tensor that is missing, or of another dtype or shape; and, when they are read, for scales that are not
        finite.
    """
    leaves = dict(tensors)
    for name, stated in form.leaves.items():
        for part in (name, name + SCALE):
            if part not in tensors:
                raise CheckpointError(f"{path} lacks {part[:100]}, which its configuration states; {REMEDY}.")
        codes, scales = leaves[name], leaves.pop(name + SCALE)
        wanted = _codes_shape(form, name), form.codes_dtype
        if (codes.shape, codes.dtype) != wanted:
            raise _other(path, codes, *wanted)
        other = -1 if stated.axis == -2 else -2
        fits = len(scales.shape) == 2 and scales.shape[other] == stated.shape[other]
        if not fits or scales.dtype != _SCALES or stated.shape[stated.axis] % max(scales.shape[stated.axis], 1):
            raise _other(path, scales, "blocks of " + " x ".join(map(str, stated.shape)), _SCALES)
        leaves[name] = _values(codes, _checked(scales, form.scales.get(name), path), stated, form.dtype, path)
    return leaves


def _other(path: str, leaf: Leaf, shape: Any, dtype: np.dtype) -> CheckpointError:
    wanted = shape if isinstance(shape, str) else " x ".join(map(str, shape))
    return CheckpointError(
        f"{path} holds {leaf.origin[:100]} as {leaf.dtype} {' x '.join(map(str, leaf.shape))}, and its configuration states "
        f"{dtype} {wanted}; {REMEDY}."
    )


def _codes_shape(form: QuantisedForm, name: str) -> tuple[int, int]:
    rows, columns = form.leaves[name].shape
    return rows, (-(-columns // 2) if form.dtype in _FOUR_BITS else columns)


def _packed(codes: np.ndarray) -> np.ndarray:
    """Codes of four bits [rows, columns] -> uint8 [rows, columns / 2, rounded up]."""
    bits = codes.astype(np.int8).view(np.uint8) & 15
    bits = np.pad(bits, ((0, 0), (0, bits.shape[1] % 2)))
    return bits[:, ::2] | bits[:, 1::2] << 4


def _checked(scales: Leaf, digest: str | None, path: str) -> Leaf:
    """Scales that are compared with their digest, if one is stated, when they are first read."""

    lock = threading.Lock()

    @functools.cache
    def check() -> None:
        if digest is not None and safetensors_file.digest(scales.origin, scales) != digest:
            raise CheckpointError(
                f"{scales.origin} in {path} does not have the digest that its configuration states; {REMEDY}."
            )
        if not np.isfinite(scales.whole()).all():
            raise CheckpointError(f"{scales.origin} in {path} holds scales that are not finite; {REMEDY}.")

    def read(index: Index) -> np.ndarray:
        with lock:  # blocks of the codes are read by several threads
            check()
        return scales.read(index)

    return dataclasses.replace(scales, read=read)


def _values(codes: Leaf, scales: Leaf, stated: _Leaf, kind: str, path: str) -> Leaf:
    """The values of one quantised leaf."""
    at = stated.axis + 2
    block = stated.shape[at] // scales.shape[at]

    def decoded(index: Index) -> np.ndarray:
        if kind not in _FOUR_BITS:
            return codes.read(index).astype(np.float32)
        rows, columns = index
        pairs = codes.read((rows, slice(columns.start // 2, -(-columns.stop // 2))))
        if stated.shape[1] % 2 and columns.stop == stated.shape[1] and np.any(pairs[:, -1] >> 4):
            raise CheckpointError(f"{codes.origin} in {path} does not end in zeros; {REMEDY}.")
        first = columns.start % 2
        bits = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(len(pairs), -1)
        return _FOUR_BITS[kind][bits[:, first : first + columns.stop - columns.start]]

    def read(index: Index) -> np.ndarray:
        start, stop = index[at].start, index[at].stop
        blocks = slice(start // block, -(-stop // block))
        factors = scales.read((*index[:at], blocks, *index[at + 1 :])).astype(np.float32)
        if factors.shape[at] > 1:
            of_block = (np.arange(start, stop) // block) - blocks.start
            factors = np.take(factors, of_block, axis=at)
        values = decoded(index)
        values *= factors
        return values

    form = Quantised(
        jax.ShapeDtypeStruct(stated.shape, CODE_DTYPES[kind][0]),
        jax.ShapeDtypeStruct(scales.shape, _SCALES),
        stated.axis,
    )
    grain = (block if at == 0 and scales.shape[at] > 1 else 1, stated.shape[1])
    bits = 8 * (codes.nbytes + scales.nbytes) / math.prod(stated.shape)
    return Leaf(stated.shape, np.dtype(np.float32), codes.origin, read, grain, form.dtype, bits, codes.at_once)
