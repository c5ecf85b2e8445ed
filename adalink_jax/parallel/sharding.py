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
from adalink_jax.parallel.mesh import AXES, BATCH_AXES, DATA, MODEL, data_axis_size

# A rule applies only if its mesh axis is still free in that array, so `embed` may follow `batch` onto `data`:
# activations [batch, length, embed] keep their batch there, kernels [embed, mlp] are split (FSDP).
TENSOR_PARALLEL = (
    ("batch", BATCH_AXES),
    ("vocab", MODEL),
    ("mlp", MODEL),
    ("heads", MODEL),
    ("joined_kv", MODEL),
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
def logical_axis_rules(fsdp: bool = False, extra: tuple = ()) -> tuple[tuple[str, str | tuple[str, ...] | None], ...]:
    """The rules, first match wins.

    Args:
      fsdp: also split the `embed` axis of the parameters over `data`.
      extra: rules put before all others, such as `(("adapter_embed", "model"),)`.

    Raises:
      UserError: for a rule that names no axis of the mesh.
    """
    embed = (("embed", DATA if fsdp else None),)
    for name, axes in extra:
        unknown = set((axes,) if isinstance(axes, str) else axes or ()) - set(AXES)
        if unknown:
            raise UserError(f"The rule for {name!r} names {min(unknown)!r}; the mesh has the axes {', '.join(AXES)}.")
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


def by_shard(function, *trees):
    """`function` of each shard of `trees`, whose leaves have the shards of the batch on axis 0, on the shard's own devices.

    Inside, `batch` is a shard's rows, and no activation crosses to another shard.
    """
    inside = lambda axes: axes if axes == MODEL else None
    with nn.logical_axis_rules([(name, inside(axes)) for name, axes in nn.get_logical_axis_rules()]):
        return jax.vmap(function, spmd_axis_name=BATCH_AXES)(*trees)


def shards_of(tree, mesh: Mesh) -> int:
    """Groups of devices that split the batch and hold all of `tree` each: 1 if a leaf is itself split over them."""
    axes = [axis for leaf in jax.tree.leaves(tree) for axis in jax.tree.leaves(tuple(leaf.sharding.spec))]
    return 1 if set(axes) & set(BATCH_AXES) else data_axis_size(mesh)


def constrain_shards(tree):
    """Pins axis 0 of every leaf, the shards of the batch, to their devices."""
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES)), tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis, the batch, split over `slice` and `data`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


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
        for size, name, axes in zip(leaf.shape, spec, resolved):
            axes = (axes,) if isinstance(axes, str) else axes or ()
            parts = int(np.prod([mesh.shape[axis] for axis in axes]))
            if size % parts:
                fitting = ", ".join(str(n) for n in range(1, mesh.size + 1) if size % n == 0)
                raise UserError(
                    f"{'/'.join(str(k.key) for k in path)} {tuple(leaf.shape)}: {name!r} of size {size} does not divide over the "
                    f"{parts} devices of mesh axis {'x'.join(axes)!r}; sizes of that axis that would do: {fitting}."
                )
        return NamedSharding(mesh, resolved)

    return jax.tree_util.tree_map_with_path(place, specs, leaves, is_leaf=lambda node: isinstance(node, PartitionSpec))
