"""Logical axis names -> mesh axes.

Invariant: modules name their axes (`embed`, `heads`, ...) and never a mesh axis; the rules here are the only place
where the two meet. Names are t5x's; the adapter's own (`adapter_embed`, `adapter_rank`, `adapter_length`, `adapter_position`) are
replicated by default.
"""

import contextlib

import flax.linen as nn
import gin
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adalink_jax.errors import UserError
from adalink_jax.parallel.mesh import data_axis_size

# A rule applies only if its mesh axis is still free in that array, so `embed` may follow `batch` onto `data`:
# activations [batch, length, embed] keep their batch there, kernels [embed, mlp] are split (FSDP).
TENSOR_PARALLEL = (
    ("batch", "data"),
    ("vocab", "model"),
    ("mlp", "model"),
    ("heads", "model"),
    ("joined_kv", "model"),
)
REPLICATED_NAMES = (
    "kv",
    "length",
    "layers",
    "relpos_buckets",
    "patch",
    "position",
    "vision_embed",
    "adapter_embed",
    "adapter_rank",
    "adapter_length",
    "adapter_position",
)


@gin.configurable
def logical_axis_rules(fsdp: bool = False, extra: tuple = ()) -> tuple[tuple[str, str | None], ...]:
    """The rules, first match wins.

    Args:
      fsdp: also split the `embed` axis of the parameters over `data`.
      extra: rules put before all others, such as `(("adapter_embed", "model"),)`.
    """
    embed = (("embed", "data" if fsdp else None),)
    return tuple(extra) + TENSOR_PARALLEL + embed + tuple((name, None) for name in REPLICATED_NAMES)


@contextlib.contextmanager
def use_mesh(mesh: Mesh, rules):
    """Traces made inside see `mesh` and `rules`; `constrain` does nothing outside."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        yield mesh


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Pins the layout of the activation `x`, whose axes are called `names`, inside `use_mesh`."""
    rules = nn.get_logical_axis_rules()
    if not rules:
        return x
    return jax.lax.with_sharding_constraint(x, nn.logical_to_mesh_axes(names, rules))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis, the batch, split over `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def local_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """Numbers of the rows of a global batch that this process's devices take, ascending; processes may share rows."""
    parts = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[part] for part in parts]))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """The global batch on the devices, from each process's `local_rows` of it (with one process, all of them)."""
    sharding = batch_sharding(mesh)
    parts = data_axis_size(mesh)
    share = len(local_rows(parts, mesh))  # of so many parts of the batch

    def put(x):
        shape = (len(x) // share * parts, *x.shape[1:])
        rows = local_rows(shape[0], mesh)

        def part(index):
            first = np.searchsorted(rows, index[0].start or 0)
            return x[first : first + shape[0] // parts]

        return jax.make_array_from_callback(shape, sharding, part)

    return {name: put(x) for name, x in batch.items()}


def on_mesh(tree, mesh: Mesh):
    """Leaves that are not yet laid out on `mesh` (every process has the same of them), on each of its devices."""
    laid_out = lambda x: isinstance(getattr(x, "sharding", None), NamedSharding)
    return jax.tree.map(lambda x: x if laid_out(x) else jax.device_put(x, replicated(mesh)), tree)


def to_host(tree):
    """NumPy copies of global arrays, whole, in every process; all processes must ask."""

    def whole(x):
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return x
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.device_get(jax.tree.map(whole, tree))


def settle(arrays):
    """Returns `arrays`, ready where they must be: collectives of virtual CPU devices share a pool of threads, in which two
    programs in flight can wait for each other for ever. Elsewhere nothing is waited for.
    """
    if jax.default_backend() == "cpu" and jax.device_count() > 1:
        jax.block_until_ready(arrays)
    return arrays


def unbox(boxed):
    """A tree of plain leaves from one of `nn.LogicallyPartitioned` leaves."""
    is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
    return jax.tree.map(lambda leaf: leaf.value if is_box(leaf) else leaf, boxed, is_leaf=is_box)


def param_shardings(boxed, mesh: Mesh, rules):
    """Shardings of a tree of `nn.LogicallyPartitioned` abstract leaves, in the same (unboxed) structure.

    Raises:
      UserError: if a dimension does not divide over its mesh axis; the sentence names the parameter and the sizes.
    """
    specs = nn.get_partition_spec(boxed)
    leaves = unbox(boxed)

    def place(path, spec, leaf):
        resolved = nn.logical_to_mesh_axes(spec, rules)
        for dim, axis in enumerate(resolved):
            if axis is not None and leaf.shape[dim] % mesh.shape[axis]:
                name = "/".join(str(k.key) for k in path)
                raise UserError(
                    f"{name} {tuple(leaf.shape)}: dimension {dim} ({spec[dim]}) of size {leaf.shape[dim]} does not "
                    f"divide over the {mesh.shape[axis]} devices of mesh axis {axis!r}; "
                    f"use a divisor of {leaf.shape[dim]}."
                )
        return NamedSharding(mesh, resolved)

    return jax.tree_util.tree_map_with_path(place, specs, leaves, is_leaf=lambda node: isinstance(node, PartitionSpec))
