"""zarr arrays, read piece by piece by tensorstore; a missing or damaged chunk is an error, not zeros.

tensorstore allocates whatever an array's metadata declares, and aborts the process where it cannot. So the metadata is read and
compared with the stored files first: there is a file for each chunk, and no more bytes are declared than its compression can
hold (deflate: 1,032 times the file).
"""

import math
import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import psutil
import pydantic
import tensorstore as ts
from etils import epath

from adalink_jax.errors import CheckpointError
from adalink_jax.files.leaves import Index, Leaf, check_shape
from adalink_jax.files.network_calls import AT_ONCE
from adalink_jax.files.places import file_size, is_remote, path_of
from adalink_jax.files.typed_json import LARGEST, Form, as_form, parse_object

ZARR2, ZARR3 = ".zarray", "zarr.json"  # files of an array's metadata
FAILURES = (ValueError, LookupError, NotImplementedError, OverflowError, TypeError)  # of tensorstore
_EXPANSION = {None: 1, "gzip": 1032, "zlib": 1032}  # bytes of values per byte of a file
MOST_EXPANSION = 2**16  # zstd, bz2, and blosc, whose runs of zeros take few bytes

_HELD = 256 * 2**20  # bytes that are held at most while chunks of a bucket are read, unless one takes more

_Size = Annotated[int, pydantic.Field(ge=0)]
_Side = Annotated[int, pydantic.Field(ge=1)]


class _Compressor(Form):
    id: str


class _Zarr2(Form):
    zarr_format: Literal[2]
    shape: list[_Size]
    chunks: list[_Side]
    dtype: Annotated[str, pydantic.Field(pattern=r"^([<>|](f[248]|[iu][1248])|\|b1|bfloat16)$")]
    compressor: _Compressor | None = None


class _Codec(Form):
    name: str


class _Chunks(Form):
    chunk_shape: list[_Side]


class _Grid(Form):
    configuration: _Chunks


class _Zarr3(Form):
    zarr_format: Literal[3]
    shape: list[_Size]
    chunk_grid: _Grid
    data_type: Annotated[str, pydantic.Field(pattern=r"^(bool|u?int(8|16|32|64)|float(16|32|64)|bfloat16)$")]
    codecs: list[_Codec] = []


class Stored(NamedTuple):
    """What is stored of one array or more: the number of files, their bytes, and what a byte of them may hold at most."""

    files: int
    nbytes: int
    expansion: int | None = None


def kvstore(path: epath.Path) -> dict[str, str]:
    """tensorstore's specification of a folder."""
    text = str(path)
    if text.startswith("gs://"):
        bucket, _, rest = text.removeprefix("gs://").partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": f"{rest}/"}
    return {"driver": "file", "path": f"{os.path.abspath(text)}/"}  # tensorstore accepts no `..`


def stored_in(folder: epath.Path, path: str) -> Stored | None:
    """The files in a local folder and below, without the metadata; None for a bucket, which would be slow to list.

    Raises:
      CheckpointError: for what is not a regular file (a FIFO would block), and for a file that is too large to be read at once.
    """
    if is_remote(folder):
        return None
    files, nbytes, memory = 0, 0, psutil.virtual_memory().total
    for at, _, names in os.walk(folder):
        for name in names:
            size = file_size(path_of(at) / name, error=CheckpointError)
            if size > (most := LARGEST if name in (ZARR2, ZARR3) else memory):
                raise CheckpointError(f"{at}/{name} has {size:,} bytes, more than {most:,}; copy the checkpoint again.")
            if name not in (ZARR2, ZARR3):
                files, nbytes = files + 1, nbytes + size
    return Stored(files, nbytes)


def open_array(store: Mapping[str, Any], origin: str, path: str, stored: Stored | None, metadata: str = ZARR2) -> Leaf:
    """Opens an array.

    Args:
      store: tensorstore's specification of its folder.
      origin: its name in the checkpoint.
      path: the checkpoint, for errors.
      stored: what is stored of it, or of all arrays together; None if that is not known.
      metadata: ZARR2 or ZARR3.

    Raises:
      CheckpointError: for an array that is damaged, incomplete, or larger than its files can hold.
    """
    damaged = lambda why: CheckpointError(f"{path}: the array {origin} is damaged or cut short ({why}); copy it again.")
    try:
        text = ts.KvStore.open(dict(store)).result().read(metadata).result().value
        if len(text) > LARGEST:
            raise ValueError(f"{metadata} has {len(text):,} bytes")
        name = f"{path}: {metadata} of the array {origin}"
        _check(parse_object(text.decode(), name, error=CheckpointError), name, metadata, stored)
        driver = "zarr3" if metadata == ZARR3 else "zarr"
        spec = {"driver": driver, "kvstore": dict(store), "fill_missing_data_reads": False}
        array = ts.open(spec, read=True).result()
        shape, dtype = tuple(array.shape), array.dtype.numpy_dtype
    except CheckpointError:
        raise
    except FAILURES as e:
        raise damaged(first_line(e)) from e

    def read(index: Index) -> np.ndarray:
        try:
            return array[index].read().result()
        except FAILURES as e:
            raise damaged(first_line(e)) from e

    chunk = array.chunk_layout.read_chunk.shape or shape
    grain = tuple(side or size for side, size in zip(chunk, shape))
    is_local = store.get("base", store)["driver"] == "file"
    held = 3 * dtype.itemsize * math.prod(grain)  # packed, unpacked, and copied
    at_once = 1 if is_local else min(AT_ONCE, max(1, _HELD // max(1, held)))
    return Leaf(shape, dtype, origin, read, grain, at_once=at_once)


def _check(value: Mapping[str, Any], name: str, metadata: str, stored: Stored | None) -> None:
    """Refuses metadata of another form, or that declares more than is stored.

    Raises:
      CheckpointError: for another form.
      ValueError: says what is too much.
    """
    if metadata == ZARR2:
        form = as_form(value, _Zarr2, name, error=CheckpointError)
        chunks, dtype = form.chunks, np.dtype(form.dtype)
        expansion = _EXPANSION.get(form.compressor and form.compressor.id, MOST_EXPANSION)
    else:
        form = as_form(value, _Zarr3, name, error=CheckpointError)
        chunks, dtype = form.chunk_grid.configuration.chunk_shape, np.dtype(form.data_type)
        expansion = max((_EXPANSION.get(codec.name, MOST_EXPANSION) for codec in form.codecs), default=1)
    if len(chunks) != len(form.shape):
        raise ValueError(f"its shape has {len(form.shape)} axes, and its chunks {len(chunks)}")
    check_shape(form.shape, dtype)
    check_shape(chunks, dtype)
    chunk = dtype.itemsize * math.prod(chunks)
    if chunk > (memory := psutil.virtual_memory().total):
        raise ValueError(f"it declares chunks of {chunk:,} bytes, and this machine has a memory of {memory:,}")
    count = math.prod(-(-size // side) for size, side in zip(form.shape, chunks))
    if stored is None or count == 0:
        return
    if count > stored.files:
        raise ValueError(f"it declares {count:,} chunks, and there are {stored.files:,}")
    most = stored.nbytes * (stored.expansion or expansion)
    for what, nbytes in (("chunks of", chunk), ("a shape of", dtype.itemsize * math.prod(form.shape))):
        if nbytes > most:
            raise ValueError(f"it declares {what} {nbytes:,} bytes, more than its {stored.nbytes:,} bytes can hold")


def first_line(error: Exception) -> str:
    """The first line of a message of tensorstore's."""
    return str(error).split("\n")[0][:200]
