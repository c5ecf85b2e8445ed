"""Arrays from files, by many processes: in each slice one process reads a value, and hands it to those that also hold it.

Values cross between devices as integers, so that no bit of them changes. With one process nothing crosses.
"""

import collections
import functools
import math
import mmap
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adalink_jax.errors import UserError
from adalink_jax.parallel.distributed import all_agree
from adalink_jax.parallel.mesh import SLICE
from adalink_jax.parallel.sharding import settle

Index = tuple[slice, ...]


class Readers:
    """Shares the reading of a job's arrays among its processes, which all ask for the same arrays in the same order."""

    def __init__(self):
        self._bytes: collections.Counter[int] = collections.Counter()  # process -> bytes, as every process counts them
        self._before: jax.Array | None = None
        self._error: Exception | None = None

    def array(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype,
        sharding: jax.sharding.Sharding,
        read: Callable[[Index], np.ndarray],
        grain: tuple[int, ...],
    ) -> jax.Array:
        """An array whose values `read` gives.

        Where the processes of a slice hold the same values, or parts that share a `grain`, one of them reads: whose turn it
        is depends on what each has read so far. Besides the array, a process holds what it reads of it; its devices hold
        the part that is on its way, and that of the array before.

        Args:
          shape, dtype: of the array; the dtype has 1, 2 or 4 bytes.
          sharding: where it goes.
          read: a slice an axis (with bounds) -> those values, in `dtype`.
          grain: the part that `read` takes from the file at once, whatever is asked of it.
        """
        layout = reading_layout(shape, grain, sharding) if jax.process_count() > 1 else None
        if layout is None:
            return jax.make_array_from_callback(shape, sharding, _remembered(shape, self._guarded(read, dtype)))
        mesh, (spec, free) = sharding.mesh, layout
        rows = math.prod(mesh.shape[axis] for axis in free)
        reader = self._whose_turn(mesh, free, rows, math.prod(shape) * dtype.itemsize)
        integers = np.dtype(f"uint{8 * dtype.itemsize}")
        values = self._guarded(read, dtype)

        def part(index: Index) -> np.ndarray:
            mine = index[0].start == reader
            out = values(index[1:]) if mine else host_zeros([i.stop - i.start for i in index[1:]], dtype)
            return out.view(integers)[None]

        if self._before is not None:
            jax.block_until_ready(self._before)
        place = NamedSharding(mesh, PartitionSpec(free or None, *spec))
        sent = jax.make_array_from_callback((rows, *shape), place, _remembered((rows, *shape), part))
        self._before = settle(_sum_of_rows(dtype, sharding)(sent))
        return self._before

    def finish(self) -> None:
        """To be called by all processes after the last array.

        Raises:
          what `read` raised in this process; UserError where another process could not read.
        """
        fine = all_agree(self._error is None)
        if self._error is not None:
            raise self._error
        if not fine:
            raise UserError("Another process could not read its part of the base; its message says why.")

    def _guarded(self, read: Callable, dtype: np.dtype) -> Callable[[Index], np.ndarray]:
        """`read`; of several processes, one whose files cannot be read goes on with zeros: the others wait for it."""
        if jax.process_count() == 1:
            return read

        def guarded(index: Index) -> np.ndarray:
            if self._error is None:
                try:
                    return read(index)
                except Exception as e:
                    self._error = e
            return host_zeros([i.stop - i.start for i in index], dtype)

        return guarded

    def _whose_turn(self, mesh: Mesh, free: tuple[str, ...], rows: int, nbytes: int) -> int:
        """The position along `free` whose devices' processes have read least; theirs is an array of `nbytes`."""
        front = np.moveaxis(mesh.devices, [mesh.axis_names.index(axis) for axis in free], range(len(free)))
        processes = [{device.process_index for device in row.flat} for row in front.reshape(rows, -1)]
        reader = min(range(rows), key=lambda row: max(self._bytes[process] for process in processes[row]))
        for process in processes[reader]:
            self._bytes[process] += nbytes // len(processes[reader])
        return reader


def host_zeros(shape: list[int], dtype: np.dtype) -> np.ndarray:
    """An array of zeros whose memory goes back to the system with it; freed blocks of malloc's heap are kept."""
    size = math.prod(shape)
    return np.frombuffer(mmap.mmap(-1, max(1, size * dtype.itemsize)), dtype, size).reshape(shape)


def reading_layout(
    shape: tuple[int, ...], grain: tuple[int, ...], sharding: jax.sharding.Sharding
) -> tuple[tuple, tuple[str, ...]] | None:
    """How an array is read so that each slice reads each value once; arguments as for `Readers.array`.

    Returns:
      None: each process reads what its devices hold. Else `(spec, free)`: the axes of the mesh that cut each axis of the array
      while it is read, and those along which one position reads for all. (Where no cut keeps the grains whole, processes read
      parts of the same grains.)
    """
    if not isinstance(sharding, NamedSharding) or not shape:
        return None
    mesh, target = sharding.mesh, (*sharding.spec, *(None,) * (len(shape) - len(sharding.spec)))
    slices = len({_slice_of(device) for device in mesh.devices.flat})
    across = {SLICE} if slices > 1 else set()
    used = tuple(axis for axes in target for axis in _names(axes))
    free = tuple(axis for axis in mesh.axis_names if axis not in across | set(used) and mesh.shape[axis] > 1)
    holders = collections.defaultdict(set)
    for device, index in sharding.devices_indices_map(shape).items():
        holders[_slice_of(device), _bounds(index, shape)].add(device.process_index)
    apart = all(len(processes) == 1 for processes in holders.values())
    if _whole_grains(shape, grain, target, mesh) or len({p for each in holders.values() for p in each}) == slices:
        return None if apart else (target, free)
    for axis in range(len(shape)):
        spec = (None,) * axis + (used,) + (None,) * (len(shape) - axis - 1)
        if _whole_grains(shape, grain, spec, mesh):
            return spec, free
    return None if apart else (target, free)


def _whole_grains(shape, grain, spec, mesh: Mesh) -> bool:
    """Whether `spec` cuts between grains only."""
    parts = [math.prod(mesh.shape[axis] for axis in _names(axes)) for axes in spec]
    return all(n == 1 or (size % n == 0 and size // n % g == 0) for size, n, g in zip(shape, parts, grain))


def _names(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else axes or ()


def _slice_of(device: jax.Device) -> int | None:
    return getattr(device, "slice_index", None)


def _bounds(index: Index, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(i.indices(n)[:2] for i, n in zip(index, shape))


def _remembered(shape: tuple[int, ...], read: Callable[[Index], np.ndarray]) -> Callable[[Index], np.ndarray]:
    """`read` with bounds, called once for what several devices of this process hold."""
    known = {}

    def remembered(index: Index) -> np.ndarray:
        bounds = _bounds(index, shape)
        if bounds not in known:
            known[bounds] = read(tuple(slice(*b) for b in bounds))
        return known[bounds]

    return remembered


@functools.lru_cache(maxsize=None)
def _sum_of_rows(dtype: np.dtype, sharding: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    """uint [n, ...], all zeros but in one row -> that row as `dtype`."""
    join = lambda x: jax.lax.bitcast_convert_type(jnp.sum(x, axis=0, dtype=x.dtype), dtype)
    return jax.jit(join, out_shardings=sharding)
