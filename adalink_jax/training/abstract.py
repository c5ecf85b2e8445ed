"""The arrays of a run before any exist: shapes, dtypes and shardings. Planning compiles with them; loading fills them."""

import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from adalink_jax import parallel
from adalink_jax.adapters import AdaptedModel, abstract_params
from adalink_jax.models import paths
from adalink_jax.models.quantised import Quantised, Storage, bits_of
from adalink_jax.training import partition
from adalink_jax.training.partition import Leaves, Shapes
from adalink_jax.training.step import TrainState


def abstract_leaves(model: AdaptedModel, mesh: Mesh, rules: parallel.LogicalRules) -> dict[str, jax.ShapeDtypeStruct]:
    """Every leaf of `model` by name, float32, with its sharding on `mesh`.

    Raises:
      UserError: if a leaf does not divide over its devices.
    """
    with parallel.use_mesh(mesh, rules):  # some axes' names depend on how many devices share the heads
        boxed = abstract_params(model)
    shardings = paths.flatten(parallel.param_shardings(boxed, mesh, rules))
    leaves = paths.flatten(parallel.unbox(boxed))
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[name]) for name, x in leaves.items()}


def abstract_state(
    model: AdaptedModel,
    trainable: tuple[str, ...],
    storage: Storage,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: parallel.LogicalRules,
) -> tuple[TrainState, dict[str, jax.ShapeDtypeStruct | Quantised]]:
    """`(state, frozen)` of a run: see `Setup` for the arguments."""
    trained, rest = partition.split(abstract_leaves(model, mesh, rules), trainable)
    frozen = storage.stored(rest, ())
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=parallel.replicated(mesh))
    opt_state = abstract_optimizer(optimizer.init, trained, mesh)
    return TrainState(cast(jax.Array, step), cast(Leaves, trained), opt_state), frozen


def abstract_optimizer(init: Callable, trainable: Shapes, mesh: Mesh) -> Any:
    """The optimizer's state that `init` makes for `trainable`.

    State that mirrors a parameter takes that parameter's sharding; everything else is replicated.
    """

    def place(path, state_leaf):
        keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        mirrored = (trainable[key] for key in keys if key in trainable and trainable[key].shape == state_leaf.shape)
        sharding = next((leaf.sharding for leaf in mirrored), parallel.replicated(mesh))
        return jax.ShapeDtypeStruct(state_leaf.shape, state_leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(init, trainable))


def bytes_per_device(tree: Any) -> int:
    """Bytes of `tree`'s arrays on one device."""
    bits = lambda x: bits_of(x.dtype) * math.prod(x.sharding.shard_shape(x.shape))
    return sum(-(-bits(x) // 8) for x in jax.tree.leaves(tree))
