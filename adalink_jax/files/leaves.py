"""Arrays in files, read piece by piece: nothing is read before it is requested, and never more than requested."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from adalink_jax.files.network_calls import mapped

BLOCK_BYTES = 4 * 2**20  # of the file's values held in memory beside the array that is being filled

MOST_AXES = 32

Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array in a file.

    Attributes:
      shape: the shape that the model expects.
      dtype: dtype in the file.
      origin: name in the file.
      read: maps one bounded slice per axis to that part of the array, in the file's dtype.
      grain: shape of the part that is cheapest to read at once, such as a chunk or a row.
      precision: of a quantised array, how it is stored ("int8", "int4/64"); `read` and `dtype` are of its values. None for all others.
      bits: of a quantised array, the bits in the file for each value, with its scales.
      at_once: how many threads may `read` at a time to be faster than one: several where each call waits for a network.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    origin: str
    read: Callable[[Index], np.ndarray]
    grain: tuple[int, ...]
    precision: str | None = None
    bits: float | None = None
    at_once: int = 1

    @property
    def size(self) -> int:
        """The number of values."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """The number of bytes in the file."""
        return self.bytes_of(self.size)

    def bytes_of(self, size: int) -> int:
        """The number of bytes in the file of so many values."""
        return size * self.dtype.itemsize if self.bits is None else round(size * self.bits / 8)

    def whole(self) -> np.ndarray:
        """Reads the whole array."""
        index = tuple(slice(0, n) for n in self.shape)
        if self.at_once == 1:
            return self.read(index)
        out = np.empty(self.shape, self.dtype)
        fill([(out, self, index)])
        return out

    def blocks(self, index: Index | None = None) -> Iterator[Index]:
        """Yields `index` cut along one axis into whole grains of about `BLOCK_BYTES`."""
        index = tuple(slice(0, n) for n in self.shape) if index is None else index
        if not index:
            yield index
            return
        extents = [i.stop - i.start for i in index]
        axis = max(range(len(index)), key=lambda a: -(-extents[a] // self.grain[a]))
        others = np.prod([n for a, n in enumerate(extents) if a != axis], dtype=np.int64)
        step = max(1, BLOCK_BYTES // max(1, int(others) * self.dtype.itemsize * self.grain[axis])) * self.grain[axis]
        start = index[axis].start
        while start < index[axis].stop:
            stop = min(index[axis].stop, (start // self.grain[axis]) * self.grain[axis] + step)
            yield (*index[:axis], slice(start, stop), *index[axis + 1 :])
            start = stop


def fill(parts: Iterable[tuple[np.ndarray, Leaf, Index]]) -> None:
    """Fills each array with the part at an index of its leaf, cast to the array's dtype, block by block.

    Where leaves may be read by several threads, blocks of all arrays are read at once: so many are in memory, and no more.
    """
    parts = list(parts)

    def copy(task: tuple[np.ndarray, Leaf, Index, Index]) -> None:
        out, leaf, index, block = task
        within = tuple(slice(b.start - i.start, b.stop - i.start) for b, i in zip(block, index))
        out[within] = leaf.read(block)

    tasks = [(*part, block) for part in parts for block in part[1].blocks(part[2])]
    mapped(copy, tasks, min((leaf.at_once for _, leaf, _ in parts), default=1))


def check_shape(shape: Sequence[int], dtype: np.dtype) -> None:
    """Refuses the shape that a file declares of an array that no NumPy array can have.

    Raises:
      ValueError: for more than `MOST_AXES` axes, or 2**62 bytes, an axis of length 0 not counted.
    """
    if len(shape) > MOST_AXES:
        raise ValueError(f"it has {len(shape)} axes, more than {MOST_AXES}")
    if dtype.itemsize * math.prod(max(size, 1) for size in shape) >= 2**62:
        raise ValueError(f"its shape {tuple(shape)} is larger than any array")


def from_array(array: np.ndarray, origin: str) -> Leaf:
    """Wraps an array that is in memory."""
    return Leaf(array.shape, array.dtype, origin, lambda index: array[index], array.shape)


def transposed(leaf: Leaf) -> Leaf:
    """The transpose of a matrix."""
    read = lambda index: leaf.read(index[::-1]).T
    return dataclasses.replace(leaf, shape=leaf.shape[::-1], read=read, grain=leaf.grain[::-1])


def rows(leaf: Leaf, start: int, stop: int) -> Leaf:
    """Rows `start` to `stop` of a leaf."""
    at = lambda index: (slice(start + index[0].start, start + index[0].stop), *index[1:])
    shape = (stop - start, *leaf.shape[1:])
    return dataclasses.replace(leaf, shape=shape, read=lambda index: leaf.read(at(index)), grain=(1, *leaf.grain[1:]))


def computed(
    leaves: Sequence[Leaf], shape: tuple[int, ...], make: Callable[..., np.ndarray], dtype: np.dtype | None = None
) -> Leaf:
    """A small leaf computed from other leaves, which are read whole.

    Args:
      leaves: the arguments of `make`.
      shape: shape of the result.
      make: maps the arrays to the result.
      dtype: dtype of the result; None means the first leaf's.
    """
    origin = ", ".join(leaf.origin for leaf in leaves)
    read = lambda index: np.reshape(make(*(leaf.whole() for leaf in leaves)), shape)[index]
    return Leaf(shape, dtype or leaves[0].dtype, origin, read, shape)


def layer(leaf: Leaf, i: int, axis: int, shape: tuple[int, ...]) -> Leaf:
    """Layer `i` of a leaf whose layers are stacked on `axis`, reshaped to `shape` (where heads are joined)."""
    at = lambda rest: (*rest[:axis], slice(i, i + 1), *rest[axis:])
    rest = (*leaf.shape[:axis], *leaf.shape[axis + 1 :])

    def read(index: Index) -> np.ndarray:
        if rest == shape:
            return leaf.read(at(index)).squeeze(axis)
        return leaf.read(at(tuple(slice(0, n) for n in rest))).reshape(shape)[index]

    grain = (*leaf.grain[:axis], *leaf.grain[axis + 1 :]) if rest == shape else shape
    return dataclasses.replace(leaf, shape=shape, read=read, grain=grain, origin=f"{leaf.origin}[{i}]")
