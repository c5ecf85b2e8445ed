"""Logical axis names -> mesh axes: where each parameter and activation is placed.

Invariant: modules name their axes (`embed`, `heads`, ...) and never a mesh axis; only the rules here map one to the other.
The names are t5x's. The adapter's own (`adapter_embed`, `adapter_rank`, `adapter_length`, `adapter_position`) are replicated
by default.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import flax.linen as nn
import gin
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.spmd import logical_to_mesh_axes
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adalink_jax.errors import UserError
from adalink_jax.parallel.mesh import AXES, BATCH_AXES, DATA, MODEL, data_axis_size

Tree = TypeVar("Tree")  # any pytree; the function returns one of the same structure
# (logical axis, mesh axis or axes); the first match wins.
LogicalRules = tuple[tuple[str, str | tuple[str, ...] | None], ...]

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
def logical_axis_rules(fsdp: bool = False, extra: LogicalRules = ()) -> LogicalRules:
    """Returns the rules.

    Args:
      fsdp: also split the `embed` axis of the parameters over `data`.
      extra: rules before all others, such as `(("adapter_embed", "model"),)`.

    Raises:
      UserError: for a rule with an unknown mesh axis.
    """
    embed = (("embed", DATA if fsdp else None),)
    for name, axes in extra:
        unknown = set(as_tuple(axes)) - set(AXES)
        if unknown:
            raise UserError(f"The rule for {name!r} names {min(unknown)!r}; the mesh has the axes {', '.join(AXES)}.")
    return tuple(extra) + TENSOR_PARALLEL + embed + tuple((name, None) for name in REPLICATED_NAMES)


@contextlib.contextmanager
def use_mesh(mesh: Mesh, rules: LogicalRules) -> Iterator[Mesh]:
    """Sets the mesh and the rules for programs traced inside; outside, `constrain` does nothing."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        yield mesh


@contextlib.contextmanager
def traced_on(mesh: Mesh, rules: LogicalRules) -> Iterator[None]:
    """As `use_mesh`, inside a function that is being traced, whoever traces it."""
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(rules):
        yield


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Pins the layout of the activation `x` with the logical axes `names`."""
    rules = nn.get_logical_axis_rules()
    if not rules:
        return x
    return jax.lax.with_sharding_constraint(x, _mesh_axes(names, rules))


def splits_parameters() -> bool:
    """Whether the rules in use split parameters over `data` (FSDP)."""
    return dict(nn.get_logical_axis_rules()).get("embed") == DATA


def gather(x: jax.Array, names: Sequence[str | None]) -> jax.Array:
    """Gathers the parameter `x` with the logical axes `names` over `data`; other axes stay split."""
    whole = lambda axes: tuple(axis for axis in as_tuple(axes) if axis != DATA) or None
    rules = [(name, whole(axes)) for name, axes in nn.get_logical_axis_rules()]
    return jax.lax.with_sharding_constraint(x, _mesh_axes(tuple(names), rules))


def as_tuple(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Returns the mesh axes of one entry of a rule or a `PartitionSpec`."""
    return (axes,) if isinstance(axes, str) else axes or ()


def _mesh_axes(names: tuple[str | None, ...], rules: Any) -> PartitionSpec:
    return cast(PartitionSpec, logical_to_mesh_axes(names, rules))  # None for None only


def _parts(name: str | None) -> int:
    """How many devices a logical axis is split over, by the rules and the mesh in use."""
    mesh, rules = jax.sharding.get_abstract_mesh(), nn.get_logical_axis_rules()
    if not rules or mesh.empty:
        return 1
    return int(np.prod([mesh.shape[axis] for axis in as_tuple(_mesh_axes((name,), rules)[0])]))


def splits(size: int, name: str) -> bool:
    """Whether an axis of this size divides over the devices of its logical name."""
    return size % _parts(name) == 0


def elements_per_device(x: jax.ShapeDtypeStruct, *names: str | None) -> int:
    """Returns how many elements of an activation with the logical axes `names` a device holds."""
    return int(np.prod([-(-size // _parts(name)) for size, name in zip(x.shape, names)]))


def over_shards(
    function: Callable[..., jax.Array],
    arguments: Sequence[jax.Array | None],
    names: Sequence[tuple[str | None, ...]],
    out: tuple[str | None, ...],
) -> jax.Array:
    """Calls `function` on each device with its own parts of the arguments, where their logical axes are split over devices.

    Args:
      function: computes one array from its parts, which must not depend on each other: it uses no collectives.
      arguments: arrays, or None, which stays None.
      names: the logical axes of each argument; an axis that does not divide over its devices is not split.
      out: the result's axes.
    """
    mesh, rules = jax.sharding.get_abstract_mesh(), nn.get_logical_axis_rules()
    if not rules or mesh.empty:
        return function(*arguments)
    sizes = {pair for axes, x in zip(names, arguments) if x is not None for pair in zip(axes, x.shape)}
    uneven = {name for name, size in sizes if name is not None and size % _parts(name)}
    spec = lambda axes: _mesh_axes(tuple(None if name in uneven else name for name in axes), rules)
    specs = tuple(None if x is None else spec(axes) for axes, x in zip(names, arguments))
    # Without `check_vma`, gradients of what several devices hold are summed over them, and loops may begin with constants.
    return jax.shard_map(function, in_specs=specs, out_specs=spec(out), check_vma=False)(*arguments)


def by_shard(function: Callable[..., Tree], *trees: Any) -> Tree:
    """Maps `function` over axis 0 of `trees`, the shards of the batch, each on its own devices.

    Inside, `batch` is the rows of one shard, and no activation crosses to another shard.
    """
    inside = lambda axes: axes if axes == MODEL else None
    with nn.logical_axis_rules([(name, inside(axes)) for name, axes in nn.get_logical_axis_rules()]):
        return jax.vmap(function, spmd_axis_name=BATCH_AXES)(*trees)


def shards_of(tree: Any, mesh: Mesh) -> int:
    """Returns how many groups of devices split the batch and each hold all of `tree`; 1 if a leaf is split over them."""
    axes = [axis for leaf in jax.tree.leaves(tree) for axis in jax.tree.leaves(tuple(leaf.sharding.spec))]
    return 1 if set(axes) & set(BATCH_AXES) else data_axis_size(mesh)


def constrain_shards(tree: Tree) -> Tree:
    """Pins axis 0 of every leaf, the shards of the batch, to the shards' devices."""
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES)), tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding with the same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding with axis 0, the batch, split over `slice` and `data`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def local_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """Returns the rows of a global batch that this process's devices hold, ascending; processes may share rows."""
    parts = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[part] for part in parts]))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Places the global batch on the devices, from each process's `local_rows` of it (with one process: all rows)."""
    sharding = batch_sharding(mesh)
    parts = data_axis_size(mesh)
    share = len(local_rows(parts, mesh))  # parts that this process holds

    def put(x):
        shape = (len(x) // share * parts, *x.shape[1:])
        rows = local_rows(shape[0], mesh)

        def part(index):
            first = np.searchsorted(rows, index[0].start or 0)
            return x[first : first + shape[0] // parts]

        return jax.make_array_from_callback(shape, sharding, part)

    return {name: put(x) for name, x in batch.items()}


def on_mesh(tree: Tree, mesh: Mesh) -> Tree:
    """Replicates the leaves that are not placed on a mesh yet; every process must have the same values."""
    placed = lambda x: isinstance(getattr(x, "sharding", None), NamedSharding)
    return jax.tree.map(lambda x: x if placed(x) else jax.device_put(x, replicated(mesh)), tree)


def to_host(tree: Any) -> Any:
    """Copies whole global arrays to NumPy in every process; all processes must call it."""
    is_whole = lambda x: not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
    whole = lambda x: x if is_whole(x) else multihost_utils.process_allgather(x, tiled=True)
    return jax.device_get(jax.tree.map(whole, tree))


def to_first(x: jax.Array | np.ndarray) -> np.ndarray | None:
    """Copies one whole global array to NumPy in process 0, and returns None in all others; all processes must call it.

    The copy on the host is freed with the result (that of `to_host` stays as long as the array does).
    """
    if not isinstance(x, jax.Array):
        return x
    if x.is_fully_addressable or x.is_fully_replicated:
        whole = jnp.copy(x)
    else:
        whole = _gathered(cast(Mesh, cast(NamedSharding, x.sharding).mesh))(x)
    jax.block_until_ready(whole)  # else the others would gather ahead, and hold what process 0 has not written
    return np.asarray(whole) if jax.process_index() == 0 else None


@functools.lru_cache(maxsize=None)
def _gathered(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    """Returns a program that replicates an array; one for all, as each compiles anew."""
    return jax.jit(lambda x: x, out_shardings=replicated(mesh))


def settle(arrays: Tree) -> Tree:
    """Waits for `arrays` on several virtual CPU devices only, and returns them.

    The collectives of such devices share a pool of threads, in which two programs in flight can deadlock.
    """
    if jax.default_backend() == "cpu" and jax.device_count() > 1:
        jax.block_until_ready(arrays)
    return arrays


def unbox(boxed: Any) -> Any:
    """Replaces `nn.LogicallyPartitioned` leaves of a tree by their values."""
    is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
    return jax.tree.map(lambda leaf: leaf.value if is_box(leaf) else leaf, boxed, is_leaf=is_box)


def param_shardings(boxed: Any, mesh: Mesh, rules: LogicalRules) -> Any:
    """Returns the shardings of a tree of abstract `nn.LogicallyPartitioned` leaves, in the unboxed structure.

    Raises:
      UserError: if a dimension does not divide over its mesh axis; names the parameter and the sizes.
    """
    specs = nn.get_partition_spec(boxed)
    leaves = unbox(boxed)

    def place(path, spec, leaf):
        resolved = _mesh_axes(spec, rules)
        for size, name, axes in zip(leaf.shape, spec, resolved):
            axes = as_tuple(axes)
            parts = int(np.prod([mesh.shape[axis] for axis in axes]))
            if size % parts:
                fitting = ", ".join(str(n) for n in range(1, mesh.size + 1) if size % n == 0)
                raise UserError(
                    f"{'/'.join(str(k.key) for k in path)} {tuple(leaf.shape)}: {name!r} of size {size} does not divide over the "
                    f"{parts} devices of mesh axis {'x'.join(axes)!r}; sizes that divide it: {fitting}."
                )
        return NamedSharding(mesh, resolved)

    return jax.tree_util.tree_map_with_path(place, specs, leaves, is_leaf=lambda node: isinstance(node, PartitionSpec))
