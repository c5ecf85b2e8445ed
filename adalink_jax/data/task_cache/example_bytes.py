"""One example as the bytes of a record (msgpack), and back with the same types, dtypes and shapes."""

from typing import Any, cast

import msgpack
import numpy as np

from adalink_jax.data.task_protocol import Example
from adalink_jax.errors import UserError

_NUMBERS, _OBJECTS = 1, 2  # msgpack's extension types: arrays of numbers; arrays of text or bytes


def to_bytes(example: Example) -> bytes:
    """The record of an example.

    Raises:
      UserError: for a value that is neither text, bytes, a number, an array of one of them, nor a list or dict of such values.
    """
    return cast(bytes, msgpack.packb(example, default=_packed))


def from_bytes(record: bytes) -> Example:
    """The example of a record that `to_bytes` made. Arrays are read-only."""
    return msgpack.unpackb(record, ext_hook=_unpacked)


def _packed(value: Any) -> msgpack.ExtType:
    shape = None if isinstance(value, np.generic) else np.shape(value)  # a scalar comes back as one
    array = np.asarray(value) if isinstance(value, np.ndarray | np.generic) else np.array(None)
    if array.dtype == object and array.ndim and all(isinstance(x, bytes | str) for x in array.flat):
        return msgpack.ExtType(_OBJECTS, msgpack.packb([shape, list(array.flat)]))
    if array.dtype.kind in "biuf":
        return msgpack.ExtType(_NUMBERS, msgpack.packb([array.dtype.str, shape, array.tobytes()]))
    raise UserError(f"An example has {type(value).__name__} {str(value)[:40]!r}, which a cache cannot hold.")


def _unpacked(code: int, data: bytes) -> Any:
    if code == _OBJECTS:
        shape, items = msgpack.unpackb(data)
        array = np.empty(len(items), object)
        array[:] = items
        return array.reshape(shape)
    dtype, shape, values = msgpack.unpackb(data)
    array = np.frombuffer(values, dtype)
    return array[0] if shape is None else array.reshape(shape)
