"""Arrays from files, read by many processes: in each slice one process reads a value, and sends it to those that hold it.

Values cross between devices as integers, so that no bit changes. With one process nothing crosses.
"""

import collections
import functools
import math
import mmap
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from adalink_jax.errors import UserError
from adalink_jax.parallel.distributed import all_agree
from adalink_jax.parallel.mesh import SLICE
from adalink_jax.parallel.sharding import as_tuple, settle

Index = tuple[slice, ...]


class Readers:
    """Shares the reading of a job's arrays among its processes, which must all read the same arrays in the same order."""

    def __init__(self) -> None:
        self._bytes: collections.Counter[int] = collections.Counter()  # process -> bytes read, counted alike everywhere
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
        """Makes an array of the values that `read` returns.

        If the processes of a slice hold the same values, or parts that share a `grain`, one of them reads: the one that has
        read least so far. Besides the array, a process holds what it read of it, and its devices hold what is being sent of
        this array and of the one before.

        Args:
          shape, dtype: shape and dtype of the array; the dtype has 1, 2 or 4 bytes.
          sharding: placement of the array.
          read: one slice per axis (with bounds) -> those values, in `dtype`.
          grain: shape of the part that `read` takes from the file at once, even if it needs less.
        """
        layout = reading_layout(shape, grain, sharding) if jax.process_count() > 1 else None
        if layout is None or not isinstance(sharding, NamedSharding):
            return jax.make_array_from_callback(shape, sharding, _remembered(shape, self._guarded(read, dtype)))
        mesh, (spec, free) = sharding.mesh, layout
        rows = math.prod(mesh.shape[axis] for axis in free)
        reader = self._whose_turn(mesh, free, rows, math.prod(shape) * dtype.itemsize)
        integers = np.dtype(f"uint{8 * dtype.itemsize}")
        values = self._guarded(read, dtype)

        def part(index: Index) -> np.ndarray:
            rest = index[1:]
            out = values(rest) if index[0].start == reader else host_zeros([i.stop - i.start for i in rest], dtype)
            return out.view(integers)[None]

        if self._before is not None:
            jax.block_until_ready(self._before)
        place = NamedSharding(mesh, PartitionSpec(free or None, *spec))
        sent = jax.make_array_from_callback((rows, *shape), place, _remembered((rows, *shape), part))
        self._before = settle(_sum_of_rows(dtype, sharding)(sent))
        return self._before

    def finish(self) -> None:
        """Ends the reading; all processes call it after the last array.

        Raises:
          UserError: if another process could not read. An error that `read` raised in this process is raised as it is.
        """
        succeeded = all_agree(self._error is None)
        if self._error is not None:
            raise self._error
        if not succeeded:
            raise UserError("Another process could not read its part of the base; its message says why.")

    def _guarded(self, read: Callable, dtype: np.dtype) -> Callable[[Index], np.ndarray]:
        """Wraps `read`: of several processes, one that fails continues with zeros, as the others wait for it."""
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

    def _whose_turn(self, mesh: Mesh | AbstractMesh, free: tuple[str, ...], rows: int, nbytes: int) -> int:
        """Picks the position along `free` whose devices' processes have read least, and counts `nbytes` for them."""
        front = np.moveaxis(np.asarray(mesh.devices), [mesh.axis_names.index(axis) for axis in free], range(len(free)))
        processes = [{device.process_index for device in row.flat} for row in front.reshape(rows, -1)]
        reader = min(range(rows), key=lambda row: max(self._bytes[process] for process in processes[row]))
        for process in processes[reader]:
            self._bytes[process] += nbytes // len(processes[reader])
        return reader


def host_zeros(shape: list[int], dtype: np.dtype) -> np.ndarray:
    """Returns zeros whose memory returns to the system when freed; malloc's heap would keep it."""
    size = math.prod(shape)
    return np.frombuffer(mmap.mmap(-1, max(1, size * dtype.itemsize)), dtype, size).reshape(shape)


def reading_layout(
    shape: tuple[int, ...], grain: tuple[int, ...], sharding: jax.sharding.Sharding
) -> tuple[tuple, tuple[str, ...]] | None:
    """Decides how an array is read so that each slice reads each value once; arguments as in `Readers.array`.

    Returns:
      None if each process reads what its devices hold. Otherwise `(spec, free)`: the mesh axes that split each axis of the
      array while it is read, and those along which one position reads for all. (If no split keeps the grains whole, processes
      read parts of the same grains.)
    """
    if not isinstance(sharding, NamedSharding) or not shape:
        return None
    mesh, target = sharding.mesh, (*sharding.spec, *(None,) * (len(shape) - len(sharding.spec)))
    slices = len({_slice_of(device) for device in np.asarray(mesh.devices).flat})
    across = {SLICE} if slices > 1 else set()
    used = tuple(axis for axes in target for axis in as_tuple(axes))
    free = tuple(axis for axis in mesh.axis_names if axis not in across | set(used) and mesh.shape[axis] > 1)
    holders = collections.defaultdict(set)
    for device, index in sharding.devices_indices_map(shape).items():
        holders[_slice_of(device), _bounds(index, shape)].add(device.process_index)
    apart = all(len(processes) == 1 for processes in holders.values())
    if not _whole_grains(shape, grain, target, mesh) and len(set().union(*holders.values())) != slices:
        for axis in range(len(shape)):
            spec = (None,) * axis + (used,) + (None,) * (len(shape) - axis - 1)
            if _whole_grains(shape, grain, spec, mesh):
                return spec, free
    return None if apart else (target, free)


def _whole_grains(shape: tuple[int, ...], grain: tuple[int, ...], spec: tuple, mesh: Mesh | AbstractMesh) -> bool:
    """Whether `spec` splits between grains only."""
    parts = [math.prod(mesh.shape[axis] for axis in as_tuple(axes)) for axes in spec]
    return all(n == 1 or (size % n == 0 and size // n % g == 0) for size, n, g in zip(shape, parts, grain))


def _slice_of(device: Any) -> int | None:
    return getattr(device, "slice_index", None)


def _bounds(index: Index, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(i.indices(n)[:2] for i, n in zip(index, shape))


def _remembered(shape: tuple[int, ...], read: Callable[[Index], np.ndarray]) -> Callable[[Index | None], np.ndarray]:
    """Wraps `read`: fills in bounds, and reads once what several devices of this process hold."""
    read_at = functools.cache(lambda bounds: read(tuple(slice(*b) for b in bounds)))
    return lambda index: read_at(_bounds(index or (), shape))


@functools.lru_cache(maxsize=None)
def _sum_of_rows(dtype: np.dtype, sharding: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    """Returns a program: unsigned integers [n, ...], zero except in one row -> that row as `dtype`."""
    join = lambda x: jax.lax.bitcast_convert_type(jnp.sum(x, axis=0, dtype=x.dtype), dtype)
    return jax.jit(join, out_shardings=sharding)
