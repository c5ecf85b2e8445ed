"""The arrays of a run before there are any: shapes, dtypes, places. What planning compiles with, and loading fills."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from adalink_jax import parallel
from adalink_jax.adapters import abstract_params
from adalink_jax.models import paths
from adalink_jax.training import partition
from adalink_jax.training.step import TrainState


def abstract_leaves(model, mesh, rules) -> dict[str, jax.ShapeDtypeStruct]:
    """Every leaf of `model` by name, float32, with its place on `mesh`.

    Raises:
      UserError: if a leaf does not divide over its devices.
    """
    boxed = abstract_params(model)
    shardings = paths.flatten(parallel.param_shardings(boxed, mesh, rules))
    leaves = paths.flatten(parallel.unbox(boxed))
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[name]) for name, x in leaves.items()}


def abstract_state(
    model, trainable: tuple[str, ...], frozen_dtype: str, optimizer: optax.GradientTransformation, mesh, rules
) -> tuple[TrainState, dict]:
    """`(state, frozen)` of a run: see `Setup` for the arguments."""
    leaves = abstract_leaves(model, mesh, rules)
    trained, frozen = partition.split(paths.unflatten(leaves), trainable)
    stored = lambda x: jax.ShapeDtypeStruct(x.shape, frozen_dtype, sharding=x.sharding)
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=parallel.replicated(mesh))
    return TrainState(step, trained, abstract_optimizer(optimizer.init, trained, mesh)), jax.tree.map(stored, frozen)


def abstract_optimizer(init: Callable, trainable: dict, mesh):
    """The optimizer's state that `init` makes for `trainable`: what is of a leaf and has its shape lies where the leaf does, all else everywhere."""
    leaves = paths.flatten(trainable)

    def place(path, mine):
        keys = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
        leaf = next((leaves[name] for i in range(len(keys)) if (name := "/".join(keys[i:])) in leaves), None)
        beside = leaf is not None and leaf.shape == mine.shape
        sharding = leaf.sharding if beside else parallel.replicated(mesh)
        return jax.ShapeDtypeStruct(mine.shape, mine.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(place, jax.eval_shape(init, trainable))


def bytes_per_device(tree) -> int:
    """Bytes of `tree`'s leaves on one device."""
    size = lambda x: x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
    return sum(size(x) for x in jax.tree.leaves(tree))
