"""safetensors files read by ranges and written as a stream, local or remote, without holding them in memory.

Format: 8 bytes, the header's length n (little endian); n bytes of JSON, `{name: {"dtype", "shape", "data_offsets"}}`;
the values. (The `safetensors` package maps or holds whole files and takes local paths only.)
"""

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import ml_dtypes
import numpy as np
import pydantic
from etils import epath

from adalink_jax.errors import CheckpointError
from adalink_jax.files.hub_file import HubFile
from adalink_jax.files.leaves import Index, Leaf, check_shape
from adalink_jax.files.places import file_size
from adalink_jax.files.ranges import Ranges
from adalink_jax.files.typed_json import Form, as_form

DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "F8_E4M3": ml_dtypes.float8_e4m3fn, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
PLAIN = {"format": "pt"}  # the metadata that transformers and PEFT write and ask for
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
_MAX_HEADER = 100_000_000  # the format's own limit
_REMEDY = "copy or write it again"


class _Tensor(Form):
    model_config = pydantic.ConfigDict(extra="forbid")

    dtype: Literal[tuple(DTYPES)]  # pyright: ignore[reportInvalidTypeForm]  # the names are there when pydantic reads it
    shape: list[Annotated[int, pydantic.Field(ge=0)]]
    data_offsets: tuple[Annotated[int, pydantic.Field(ge=0)], Annotated[int, pydantic.Field(ge=0)]]


class _Header(Form):
    metadata: dict[str, str]
    tensors: dict[str, _Tensor]


def read_leaves(path: epath.Path | HubFile) -> dict[str, Leaf]:
    """The file's tensors by name; see `read_header`."""
    return read_header(path)[0]


def read_header(path: epath.Path | HubFile) -> tuple[dict[str, Leaf], dict[str, str]]:
    """The file's tensors by name, and the metadata that its header states.

    Raises:
      CheckpointError: for a file that is cut short or damaged, or in which two tensors have one name or one place.
    """
    damaged = lambda why: CheckpointError(f"{path} is damaged or cut short ({why}); {_REMEDY}.")
    size, file = file_size(path, _REMEDY, CheckpointError), Ranges(path)
    start = file.read(0, 8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else _MAX_HEADER + 1
    if length > min(_MAX_HEADER, size - 8):
        raise damaged("it has no header")
    text = file.read(8, length)
    try:
        stated = json.loads(text, object_pairs_hook=_without_repetition)
        if not isinstance(stated, dict):
            raise ValueError("it is not an object")
    except (ValueError, RecursionError) as e:
        raise damaged(f"its header cannot be read: {e}") from e
    metadata = stated.pop("__metadata__", {})
    header = as_form(
        {"metadata": metadata, "tensors": stated}, _Header, f"The header of {path}", _REMEDY, CheckpointError
    )
    try:
        leaves = {name: _leaf(file, name, tensor, 8 + length) for name, tensor in header.tensors.items()}
        end = 0
        for begin, after in sorted(tensor.data_offsets for tensor in header.tensors.values()):
            if begin != end:
                raise ValueError(f"a tensor begins at byte {begin}, where the one before it ends at {end}")
            end = after
    except ValueError as e:
        raise damaged(f"its header cannot be read: {e}") from e
    if size != 8 + length + end:
        raise damaged(f"it has {size:,} bytes, its header says {8 + length + end:,}")
    return leaves, header.metadata


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name is there twice")
    return values


def digest(name: str, leaf: Leaf) -> str:
    """The SHA-256 (hex) of a tensor's name, dtype, shape and bytes; reads it whole."""
    start = f"{name} {NAMES[leaf.dtype]} {list(leaf.shape)}\n".encode()
    return hashlib.sha256(start + np.ascontiguousarray(leaf.whole()).tobytes()).hexdigest()


def _leaf(file: Ranges, name: str, tensor: _Tensor, base: int) -> Leaf:
    dtype, shape = np.dtype(DTYPES[tensor.dtype]), tuple(tensor.shape)
    check_shape(shape, dtype)
    begin, end = tensor.data_offsets
    if end - begin != dtype.itemsize * math.prod(shape):
        raise ValueError(f"{name} has {end - begin} bytes for shape {shape}")
    row = dtype.itemsize * math.prod(shape[1:])

    def read(index: Index) -> np.ndarray:
        first, last = (index[0].start, index[0].stop) if index else (0, 1)
        values = np.frombuffer(file.read(base + begin + first * row, (last - first) * row), dtype)
        return values.reshape(last - first, *shape[1:])[(slice(None), *index[1:])] if index else values.reshape(())

    return Leaf(shape, dtype, name, read, (1, *shape[1:]) if shape else (), at_once=file.at_once)


def write_leaves(
    path: epath.Path, leaves: Mapping[str, Leaf], dtype: Mapping[str, np.dtype], metadata: Mapping[str, str] = PLAIN
) -> None:
    """Writes `leaves` under their names, each in its dtype, one after the other."""
    header: dict[str, dict[str, Any]] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, leaf in leaves.items():
        length = leaf.size * np.dtype(dtype[name]).itemsize
        entry = {"dtype": NAMES[np.dtype(dtype[name])], "shape": list(leaf.shape)}
        header[name] = {**entry, "data_offsets": [offset, offset + length]}
        offset += length
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, leaf in leaves.items():
            for values in _in_order(leaf):
                file.write(values.astype(dtype[name]).tobytes())


def _in_order(leaf: Leaf) -> Iterator[np.ndarray]:
    """The values in the order of the file: blocks of rows; or all at once, if the leaf has no such blocks or several are read at a time."""
    blocks = list(leaf.blocks())
    by_rows = all(b[1:] == tuple(slice(0, n) for n in leaf.shape[1:]) for b in blocks)
    return map(leaf.read, blocks) if by_rows and leaf.at_once == 1 else iter([leaf.whole()])
