"""t5x's checkpoints: the legacy format (msgpack and zarr, as every public T5) and Orbax, in which other programs write too.

checkpoint_N/checkpoint                          msgpack {"version": 3, "optimizer": {"target": ..., "state": ...}}
checkpoint_N/target.encoder....kernel/           one zarr array per large leaf; the msgpack holds the small leaves
checkpoint_N/state/                              Orbax: arrays named target.encoder....kernel, in OCDBT or folders
"""

import collections
import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import pydantic
import tensorstore as ts
from etils import epath
from flax import serialization

from adalink_jax.checkpoints.families.family import FAMILIES, translating
from adalink_jax.checkpoints.source import Source
from adalink_jax.checkpoints.zarr_arrays import (
    FAILURES,
    MOST_EXPANSION,
    ZARR2,
    ZARR3,
    Stored,
    first_line,
    kvstore,
    open_array,
    stored_in,
)
from adalink_jax.errors import CheckpointError
from adalink_jax.files.leaves import Leaf, from_array
from adalink_jax.files.network_calls import at_once, mapped
from adalink_jax.files.places import file_size, is_there
from adalink_jax.files.typed_json import Form, as_form
from adalink_jax.models import paths
from adalink_jax.typed_values import shown

FILE, STATE = "checkpoint", "state"
VERSION = 3
_CHUNK_BYTES = 16 * 2**20  # a reader holds each chunk three times: packed, unpacked, and copied
_INLINE_BYTES = 64 * 2**10  # leaves up to this size, other than kernels, are in the msgpack


class _State(Form):
    step: Any


class _Optimizer(Form):
    target: dict[str, Any]
    state: _State


class _Checkpoint(Form):
    """The msgpack file."""

    optimizer: _Optimizer


class _Place(Form):
    path: str | None = None


class _Metadata(Form):
    shape: list[Annotated[int, pydantic.Field(ge=0)]]


class _Array(Form):
    """An array of the msgpack file that is stored in a folder."""

    kvstore: _Place
    path: str | None = None
    metadata: _Metadata


def is_legacy(folder: epath.Path) -> bool:
    """Whether `folder` is a legacy checkpoint."""
    return is_there(folder / FILE)


def orbax_folder(folder: epath.Path) -> epath.Path | None:
    """The folder of Orbax's arrays in or at `folder`, or None."""
    for at in (folder / STATE, folder):
        if (at / "manifest.ocdbt").exists() or (at / "_METADATA").exists():
            return at
    return None


def open_legacy(folder: epath.Path, path: str) -> Source:
    """Opens a legacy checkpoint (`version` 2 and later).

    Args:
      folder: `checkpoint_N`.
      path: the folder as the user gave it, for errors.

    Raises:
      CheckpointError: for a checkpoint that is damaged, or that names files outside its folder.
    """
    file_size(folder / FILE, error=CheckpointError)
    damaged = lambda e: CheckpointError(
        f"{path}/{FILE} is not a t5x checkpoint, or is cut short ({type(e).__name__}: {first_line(e)}); copy it again."
    )
    try:
        contents = serialization.msgpack_restore((folder / FILE).read_bytes())
    except Exception as e:  # msgpack and flax raise errors of many types here
        raise damaged(e) from e
    if not isinstance(contents, dict):
        raise CheckpointError(f"{path}/{FILE} holds {shown(contents)}, not a t5x checkpoint; copy it again.")
    as_form(contents, _Checkpoint, f"{path}/{FILE}", error=CheckpointError)
    step = np.asarray(contents["optimizer"]["state"]["step"])
    if step.shape or step.dtype.kind not in "iu" or step < 0:
        raise CheckpointError(f"{path}/{FILE} has the step {shown(step)}; copy it again.")
    is_array = lambda node: isinstance(node, Mapping) and {"driver", "kvstore"} <= node.keys()
    try:
        target = paths.flatten(contents["optimizer"]["target"], is_array)
    except (AttributeError, RecursionError, TypeError, ValueError) as e:  # a list, or names that are no texts
        raise damaged(e) from e

    def leaf(item: tuple[str, Any]) -> Leaf:
        name, value = item
        if isinstance(value, Mapping):
            return _stored_array(folder, value, name, path)
        return from_array(np.asarray(value), f"{FILE}: {name}")

    leaves = dict(zip(target, mapped(leaf, target.items(), at_once(folder))))
    return _translated(Source("t5x checkpoint (msgpack and zarr)", path, name_of(folder, int(step)), leaves, folder))


def _stored_array(folder: epath.Path, value: Mapping[str, Any], name: str, path: str) -> Leaf:
    """The array that the msgpack file refers to."""
    about = as_form(value, _Array, f"{name} in {path}/{FILE}", error=CheckpointError)
    array = about.kvstore.path or about.path or ""
    if not array or "\0" in array or array.startswith("/") or ".." in array.split("/"):
        raise CheckpointError(f"{path} names an array outside its folder, {array!r:.200}; do not use this checkpoint.")
    leaf = open_array(kvstore(folder / array), array, path, stored_in(folder / array, path))
    if leaf.shape != (stated := tuple(about.metadata.shape)):
        raise CheckpointError(
            f"{path}: {array} has shape {leaf.shape}, but {FILE} states {stated}; copy the checkpoint again."
        )
    return leaf


def open_orbax(folder: epath.Path, path: str) -> Source:
    """Opens a checkpoint that t5x or another program wrote with Orbax.

    Args:
      folder: the folder of the arrays (`orbax_folder`).
      path: the checkpoint as the user gave it, for errors.

    Raises:
      CheckpointError: for a damaged checkpoint.
    """
    if (folder / "manifest.ocdbt").exists():
        base, whole = {"driver": "ocdbt", "base": kvstore(folder)}, stored_in(folder, path)
        try:
            keys = [key.decode() for key in ts.KvStore.open(base).result().list().result()]
        except FAILURES as e:
            raise CheckpointError(f"{path} is damaged or cut short ({first_line(e)}); copy it again.") from e
        arrays = {
            key.rsplit("/", 1)[0]: key.rsplit("/", 1)[1] for key in keys if key.endswith((f"/{ZARR2}", f"/{ZARR3}"))
        }
        stores = {name: {**base, "path": f"{name}/"} for name in arrays}
        chunks = collections.Counter(key.split("/")[0] for key in keys)
        stored = {
            name: whole and Stored(chunks[name.split("/")[0]] - 1, whole.nbytes, MOST_EXPANSION) for name in arrays
        }
    else:
        arrays = {at.name: ZARR2 for at in folder.iterdir() if (at / ZARR2).exists()}
        stores = {name: kvstore(folder / name) for name in arrays}
        stored = {name: stored_in(folder / name, path) for name in arrays}
    prefix = "target." if any(name.startswith("target.") for name in arrays) else ""
    names = [name for name in sorted(arrays) if name.startswith(prefix)]
    leaf = lambda name: open_array(stores[name], name, path, stored[name], arrays[name])
    opened = mapped(leaf, names, at_once(folder))
    leaves = {name.removeprefix(prefix).replace(".", "/"): leaf for name, leaf in zip(names, opened)}
    at = folder.parent if folder.name == STATE else folder
    step = re.search(r"\d+$", at.name)
    name = name_of(at, int(step[0]) if step else None)
    return _translated(Source("Orbax checkpoint", path, name, leaves, folder))


def step_of(folder: epath.Path) -> int | None:
    """N of `checkpoint_N`; None for another name."""
    match = re.fullmatch(r"checkpoint_(\d+)", folder.name)
    return int(match[1]) if match else None


def name_of(folder: epath.Path, step: int | None) -> str:
    """A base model's name: its folder's, above `checkpoint_N`, and the step."""
    model = folder.name if step_of(folder) is None else folder.parent.name
    return model if step is None else f"{model}@{step}"


def _translated(source: Source) -> Source:
    """The checkpoint in this package's terms, by the first family of models that knows it."""
    for family in FAMILIES:
        with translating(source.path):
            translation = family.from_t5x(source.leaves)
        if translation is not None:
            leaves = dict(sorted(translation.leaves.items()))
            return dataclasses.replace(source, leaves=leaves, settings=translation.settings)
    return dataclasses.replace(source, leaves=dict(sorted(source.leaves.items())))


def write(folder: epath.Path, source: Source, dtype: str | None) -> None:
    """Writes `source` as a legacy checkpoint, which every version of t5x restores.

    Args:
      folder: `checkpoint_N`; created if absent, with its parent.
      source: the model.
      dtype: the dtype of the arrays; None keeps the source's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = {}
    for name, leaf in source.leaves.items():
        stored = np.dtype(dtype) if dtype else leaf.dtype
        small = leaf.size * stored.itemsize <= _INLINE_BYTES and not name.endswith("kernel")
        target[name] = leaf.whole().astype(stored) if small else _write_array(folder, name, leaf, stored)
    state = {"step": np.int32(step_of(folder) or 0), "param_states": {}}
    contents = {"version": VERSION, "optimizer": {"target": paths.unflatten(target), "state": state}}
    (folder / FILE).write_bytes(serialization.msgpack_serialize(contents))


def _write_array(folder: epath.Path, name: str, leaf: Leaf, dtype: np.dtype) -> dict[str, Any]:
    where = f"target.{name.replace('/', '.')}"
    rows = max(1, _CHUNK_BYTES // (dtype.itemsize * leaf.size // leaf.shape[0]))
    chunks = [min(rows, leaf.shape[0]), *leaf.shape[1:]]
    names = {"float32": "<f4", "float16": "<f2", "bfloat16": "bfloat16"}
    metadata = {
        "shape": list(leaf.shape),
        "chunks": chunks,
        "dtype": names[dtype.name],
        "compressor": {"id": "gzip", "level": 1},
    }
    spec = {"driver": "zarr", "kvstore": kvstore(folder / where), "metadata": metadata}
    array = ts.open(spec, create=True, delete_existing=True).result()
    for start in range(0, leaf.shape[0], chunks[0]):
        rows = slice(start, min(start + chunks[0], leaf.shape[0]))
        array[rows].write(leaf.read((rows, *(slice(0, n) for n in leaf.shape[1:]))).astype(dtype)).result()
    return {"driver": "zarr", "kvstore": {"driver": "file", "path": where}, "metadata": metadata}
