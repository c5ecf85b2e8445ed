"""t5x's checkpoints: the legacy format (msgpack and zarr, as every public T5) and Orbax.

    checkpoint_N/checkpoint                          msgpack {"version": 3, "optimizer": {"target": ..., "state": ...}}
    checkpoint_N/target.encoder....kernel/           one zarr array per large leaf; the msgpack holds the small leaves
    checkpoint_N/state/                              Orbax: arrays named target.encoder....kernel, in OCDBT or folders

tensorstore reads the arrays piece by piece; a missing or damaged chunk is an error, not zeros.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
import tensorstore as ts
from etils import epath
from flax import serialization

from adalink_jax.checkpoints.families.family import FAMILIES
from adalink_jax.checkpoints.source import Source
from adalink_jax.errors import CheckpointError
from adalink_jax.files.leaves import Index, Leaf, from_array
from adalink_jax.models import paths

FILE, STATE = "checkpoint", "state"
VERSION = 3
_CHUNK_BYTES = 16 * 2**20  # a reader holds each chunk three times: packed, unpacked, and copied
_INLINE_BYTES = 64 * 2**10  # leaves up to this size, other than kernels, are in the msgpack


def is_legacy(folder: epath.Path) -> bool:
    """Whether `folder` is a legacy checkpoint."""
    return (folder / FILE).is_file()


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
    try:
        contents: Any = serialization.msgpack_restore((folder / FILE).read_bytes())
        target = contents["optimizer"]["target"]
        step = int(contents["optimizer"]["state"]["step"])
    except (msgpack.UnpackException, ValueError, KeyError, TypeError) as e:
        raise CheckpointError(
            f"{path}/{FILE} is not a t5x checkpoint, or is cut short ({type(e).__name__}: {e}); copy it again."
        ) from e
    leaves = {}
    is_array = lambda node: isinstance(node, Mapping) and {"driver", "kvstore"} <= node.keys()
    for name, value in paths.flatten(target, is_array).items():
        if isinstance(value, Mapping):
            array = str(value["kvstore"].get("path") or value.get("path"))
            if array.startswith("/") or ".." in array.split("/"):
                raise CheckpointError(
                    f"{path} names an array outside its folder, {array!r}; do not use this checkpoint."
                )
            leaf = _zarr(_kvstore(folder / array), array, path)
            stated = tuple(value["metadata"]["shape"])
            if leaf.shape != stated:
                raise CheckpointError(
                    f"{path}: {array} has shape {leaf.shape}, but {FILE} states {stated}; copy the checkpoint again."
                )
            leaves[name] = leaf
        else:
            leaves[name] = from_array(np.asarray(value), f"{FILE}: {name}")
    return Source("t5x checkpoint (msgpack and zarr)", path, name_of(folder, step), _translated(leaves), folder)


def open_orbax(folder: epath.Path, path: str) -> Source:
    """Opens a checkpoint that t5x or another program wrote with Orbax.

    Args:
      folder: the folder of the arrays (`orbax_folder`).
      path: the checkpoint as the user gave it, for errors.

    Raises:
      CheckpointError: for a damaged checkpoint.
    """
    if (folder / "manifest.ocdbt").exists():
        base = {"driver": "ocdbt", "base": _kvstore(folder)}
        try:
            keys = [key.decode() for key in ts.KvStore.open(base).result().list().result()]
        except ValueError as e:
            raise CheckpointError(f"{path} is damaged or cut short ({_first_line(e)}); copy it again.") from e
        arrays = {key.rsplit("/", 1)[0]: key for key in keys if key.endswith(("/.zarray", "/zarr.json"))}
        stores = {name: {**base, "path": f"{name}/"} for name in arrays}
    else:
        arrays = {at.name: ".zarray" for at in folder.iterdir() if (at / ".zarray").exists()}
        stores = {name: _kvstore(folder / name) for name in arrays}
    prefix = "target." if any(name.startswith("target.") for name in arrays) else ""
    leaves = {
        name.removeprefix(prefix).replace(".", "/"): _zarr(stores[name], name, path, arrays[name].endswith(".json"))
        for name in sorted(arrays)
        if name.startswith(prefix)
    }
    at = folder.parent if folder.name == STATE else folder
    step = re.search(r"\d+$", at.name)
    name = name_of(at, int(step[0]) if step else None)
    return Source("t5x checkpoint (Orbax)", path, name, _translated(leaves), folder)


def step_of(folder: epath.Path) -> int | None:
    """N of `checkpoint_N`; None for another name."""
    match = re.fullmatch(r"checkpoint_(\d+)", folder.name)
    return int(match[1]) if match else None


def name_of(folder: epath.Path, step: int | None) -> str:
    """A base model's name: its folder's, above `checkpoint_N`, and the step."""
    model = folder.name if step_of(folder) is None else folder.parent.name
    return model if step is None else f"{model}@{step}"


def _kvstore(path: epath.Path) -> dict[str, str]:
    text = str(path)
    if text.startswith("gs://"):
        bucket, _, rest = text.removeprefix("gs://").partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": f"{rest}/"}
    return {"driver": "file", "path": f"{os.path.abspath(text)}/"}  # tensorstore accepts no `..`


def _zarr(kvstore: Mapping[str, Any], origin: str, path: str, zarr3: bool = False) -> Leaf:
    damaged = lambda e: CheckpointError(
        f"{path}: the array {origin} is damaged or cut short ({_first_line(e)}); copy it again."
    )
    spec = {"driver": "zarr3" if zarr3 else "zarr", "kvstore": kvstore, "fill_missing_data_reads": False}
    try:
        array = ts.open(spec, read=True).result()
    except ValueError as e:
        raise damaged(e) from e

    def read(index: Index) -> np.ndarray:
        try:
            return array[index].read().result()
        except ValueError as e:
            raise damaged(e) from e

    shape = tuple(array.shape)
    chunk = array.chunk_layout.read_chunk.shape or shape
    grain = tuple(side or size for side, size in zip(chunk, shape))
    return Leaf(shape, array.dtype.numpy_dtype, origin, read, grain)


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0][:200]


def _translated(leaves: Mapping[str, Leaf]) -> dict[str, Leaf]:
    """Leaves under this package's names, by the first family of models that knows the checkpoint's."""
    for family in FAMILIES:
        if (translation := family.from_t5x(leaves)) is not None:
            return dict(sorted(translation.items()))
    return dict(sorted(leaves.items()))


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
    spec = {"driver": "zarr", "kvstore": _kvstore(folder / where), "metadata": metadata}
    array = ts.open(spec, create=True, delete_existing=True).result()
    for start in range(0, leaf.shape[0], chunks[0]):
        rows = slice(start, min(start + chunks[0], leaf.shape[0]))
        array[rows].write(leaf.read((rows, *(slice(0, n) for n in leaf.shape[1:]))).astype(dtype)).result()
    return {"driver": "zarr", "kvstore": {"driver": "file", "path": where}, "metadata": metadata}
