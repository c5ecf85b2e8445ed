"""What a checkpoint is to the loader, whatever its format: named leaves that are read piece by piece.

Names are the unscanned ones of t5x (`encoder/layers_0/attention/query/kernel`); each format's module translates its own.
Nothing is read before it is asked for, and never more than asked for.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

BLOCK_BYTES = 4 * 2**20  # of the file's values, held beside the array that is being filled

Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter in a file.

    Attributes:
      shape: under its name in the model.
      dtype: in the file.
      origin: its name in the file.
      read: a slice an axis (with bounds) -> that part, in the file's dtype.
      grain: the part that costs least to read at once, such as a chunk or a row.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    origin: str
    read: Callable[[Index], np.ndarray]
    grain: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Its bytes in the file's dtype."""
        return self.size * self.dtype.itemsize

    def whole(self) -> np.ndarray:
        """All of it."""
        return self.read(tuple(slice(0, n) for n in self.shape))

    def fill(self, out: np.ndarray, index: Index) -> None:
        """Writes the part at `index` into `out`, in `out`'s dtype, block by block."""
        for block in self.blocks(index):
            within = tuple(slice(b.start - i.start, b.stop - i.start) for b, i in zip(block, index))
            out[within] = self.read(block)

    def blocks(self, index: Index | None = None) -> Iterator[Index]:
        """`index` cut along one axis, in whole grains of about `BLOCK_BYTES`."""
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


def from_array(array: np.ndarray, origin: str) -> Leaf:
    """A leaf that is in memory already."""
    return Leaf(array.shape, array.dtype, origin, lambda index: array[index], array.shape)


def counted(source: "Source", on_bytes: Callable[[int], None]) -> "Source":
    """`source`, that tells how many bytes of values each read gave."""

    def watch(leaf):
        def read(index):
            values = leaf.read(index)
            on_bytes(values.nbytes)
            return values

        return dataclasses.replace(leaf, read=read)

    return dataclasses.replace(source, leaves={name: watch(leaf) for name, leaf in source.leaves.items()})


def transposed(leaf: Leaf) -> Leaf:
    """A matrix the other way round."""
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
    """A small leaf that is `make(*arrays)` of other leaves, which are read whole.

    Args:
      leaves: what it is made of.
      shape: of the result.
      make: arrays -> array.
      dtype: of the result; None is the first leaf's.
    """
    origin = ", ".join(leaf.origin for leaf in leaves)
    read = lambda index: np.reshape(make(*(leaf.whole() for leaf in leaves)), shape)[index]
    return Leaf(shape, dtype or leaves[0].dtype, origin, read, shape)


def layer(leaf: Leaf, i: int, axis: int, shape: tuple[int, ...]) -> Leaf:
    """Layer `i` of a leaf whose layers are stacked on `axis`, in the layer's own `shape` (joined heads)."""
    at = lambda rest: (*rest[:axis], slice(i, i + 1), *rest[axis:])
    rest = (*leaf.shape[:axis], *leaf.shape[axis + 1 :])

    def read(index):
        if rest == shape:
            return leaf.read(at(index)).squeeze(axis)
        return leaf.read(at(tuple(slice(0, n) for n in rest))).reshape(shape)[index]

    grain = (*leaf.grain[:axis], *leaf.grain[axis + 1 :]) if rest == shape else shape
    return dataclasses.replace(leaf, shape=shape, read=read, grain=grain, origin=f"{leaf.origin}[{i}]")


@dataclasses.dataclass
class Source:
    """An opened checkpoint.

    Attributes:
      kind: what it is, for people.
      path: where it is, as it was asked for.
      name: the base's name.
      leaves: unscanned name -> leaf; the file's own names where they are no T5's.
      settings: fields of `T5Config` that the format states and shapes do not show (`mlp_activations`).
      part_settings: the same of other parts: `vision` (`ViTConfig`), `qformer` (`QFormerConfig`).
      position_rule: how the vision tower's positions are resampled for another resolution (`positions.RULES`).
      fingerprint: the one that the format states, or None.
      config: the format's own configuration (`config.json`), or {}.
      folder: the local or remote folder of the files.
    """

    kind: str
    path: str
    name: str
    leaves: dict[str, Leaf]
    folder: Any
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    fingerprint: str | None = None
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    part_settings: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    position_rule: str = "bilinear"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape."""
        return {name: leaf.shape for name, leaf in self.leaves.items()}

    @property
    def parameters(self) -> int:
        """Number of values."""
        return sum(leaf.size for leaf in self.leaves.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the values in the files' dtypes."""
        return sum(leaf.nbytes for leaf in self.leaves.values())
