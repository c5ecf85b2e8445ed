"""Packed training: several adapters in one program over one frozen backbone, each trained as it would be alone.

The step of one member is mapped over all. The frozen leaves are shared, and so is a batch that all members use: members that
are computed at once then share everything that does not depend on an adapter (the embeddings, the vision tower). Adapters of
lower ranks are padded as in a bank; the padding's gradients are zero, so AdamW leaves it at zero.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adalink_jax import parallel
from adalink_jax.adapters import AdaptedModel, abstract_params, align, fresh_params, unpad, widest
from adalink_jax.errors import UserError
from adalink_jax.models import paths
from adalink_jax.models.backbone import Backbone
from adalink_jax.training import abstract, partition
from adalink_jax.training.packs.members import Member
from adalink_jax.training.partition import Leaves, Shapes
from adalink_jax.training.setup import Parameters, Setup, apply_adapter_start, load_parameters
from adalink_jax.training.step import TrainState, make_train_step


@flax.struct.dataclass
class Members:
    """What differs between the members; every leaf has the A members on axis 0.

    Attributes:
      seed: int32 [A], of dropout.
      learning_rate: float32 [A], factors of the optimizer's learning rate.
      padding: masks of the adapters' leaves, nested as Flax reads them (see `adapters.align`); {} where nothing is padded.
    """

    seed: jax.Array
    learning_rate: jax.Array
    padding: dict[str, Any]


@dataclasses.dataclass
class Pack:
    """A pack in memory.

    Attributes:
      setups: what each member would be trained with alone.
      model: the model with the adapter at the largest sizes.
      trainable: the trainable leaves by name, the members on axis 0.
      members: what differs between them.
      params: the first member's parameters, as they would be alone; all members share its `frozen`.
    """

    setups: list[Setup]
    model: AdaptedModel
    trainable: dict[str, jax.Array]
    members: Members
    params: Parameters

    def member(self, trainable: Leaves, number: int) -> dict[str, jax.Array]:
        """One member's trainable leaves at its own sizes."""
        leaves = {name: leaf[number] for name, leaf in trainable.items()}
        if adapter := partition.below(leaves, "adapter"):
            leaves |= paths.flatten({"adapter": unpad(adapter, abstract_params(self.setups[number].model)["adapter"])})
        return leaves


def load_pack(setup: Setup, members: Sequence[Member], mesh: Mesh, rules: parallel.LogicalRules) -> Pack:
    """Reads the base once, and makes every member's initial values as they would be alone.

    Raises:
      UserError: for a base that is not read from files, an adapter with a frozen part, and members that do not fit one
        program.
      CheckpointError: for files that do not fit.
    """
    if setup.initial_checkpoint_path is None:
        raise UserError("The members of a pack share a base; set INITIAL_CHECKPOINT_PATH.")
    setups = [member.setup(setup) for member in members]
    params = load_parameters(setups[0], mesh, rules)
    _check_adapters_are_trainable(params.frozen)
    copies = lambda x: jnp.broadcast_to(x, (len(members), *x.shape))
    trainable = {name: copies(leaf) for name, leaf in params.trainable.items() if not name.startswith("adapter/")}
    model, padding = setup.model, {}
    if len(trainable) < len(params.trainable):
        adapters = _initial_adapters(setups, members, params)
        modules = [cast(nn.Module, member_setup.model.adapter) for member_setup in setups]
        model, stacked, padding = pack_adapters(setup.model.backbone, list(zip(modules, adapters)))
        trainable |= paths.flatten({"adapter": stacked})
    shardings = paths.flatten(parallel.param_shardings(abstract_params(model), mesh, rules))
    placed = {name: jax.device_put(leaf, _with_members(shardings[name])) for name, leaf in trainable.items()}
    differences = Members(
        jnp.array([member.seed for member in members], jnp.int32),
        jnp.array([member.learning_rate for member in members], jnp.float32),
        padding,
    )
    return Pack(setups, model, placed, parallel.on_mesh(differences, mesh), params)


def abstract_pack(
    setup: Setup,
    members: Sequence[Member],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: parallel.LogicalRules,
) -> tuple[AdaptedModel, TrainState, Members, Shapes]:
    """A pack before any arrays exist: its model, and the abstract `(state, members, frozen)` of its step, with shardings.

    Raises:
      UserError: for members that do not fit one program, and as `abstract.abstract_state`.
    """
    alone, frozen = abstract.abstract_state(setup.model, setup.trainable, setup.storage, optimizer, mesh, rules)
    _check_adapters_are_trainable(frozen)
    model, padding = setup.model, {}
    if partition.below(alone.trainable, "adapter"):
        zeros = lambda box: jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), parallel.unbox(box))
        models = [member.setup(setup).model for member in members]
        adapters = [(cast(nn.Module, model.adapter), zeros(abstract_params(model)["adapter"])) for model in models]
        model = AdaptedModel(model.backbone, widest([module for module, _ in adapters]))
        padding = jax.eval_shape(lambda: align(model.backbone, adapters)[2])
    stacked = lambda x: jax.ShapeDtypeStruct((len(members), *x.shape), x.dtype, sharding=_with_members(x.sharding))
    leaves = partition.split(abstract.abstract_leaves(model, mesh, rules), setup.trainable)[0]
    trainable = {name: stacked(leaf) for name, leaf in leaves.items()}
    replicated = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=parallel.replicated(mesh))
    differences = Members(
        cast(jax.Array, replicated((len(members),), jnp.int32)),
        cast(jax.Array, replicated((len(members),), jnp.float32)),
        jax.tree.map(lambda mask: replicated(mask.shape, mask.dtype), padding),
    )
    opt_state = abstract.abstract_optimizer(jax.vmap(optimizer.init), trainable, mesh)
    step = cast(jax.Array, replicated((), jnp.int32))
    return model, TrainState(step, cast(Leaves, trainable), opt_state), differences, frozen


def _with_members(sharding: NamedSharding) -> NamedSharding:
    """The sharding of a leaf with the members on an additional axis 0."""
    return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))


def _check_adapters_are_trainable(frozen: Mapping[str, Any]) -> None:
    if partition.below(frozen, "adapter"):
        raise UserError("A pack trains whole adapters; TRAINABLE must match every leaf of the adapter.")


def _initial_adapters(setups: Sequence[Setup], members: Sequence[Member], params: Parameters) -> list[Leaves]:
    """The initial leaves of each member's adapter; all seeds of one rank are initialised by one program."""
    if setups[0].initial_adapter_path is not None:
        return [partition.below(params.trainable, "adapter")] * len(setups)
    fresh_adapters, leaves = {}, params.trainable | params.frozen
    for rank, model in {member.rank: setup.model for member, setup in zip(members, setups)}.items():
        seeds = sorted({member.seed for member in members if member.rank == rank})
        fresh = lambda seed, model=model: paths.flatten(parallel.unbox(fresh_params(model, seed)["adapter"]))
        stacked = jax.device_get(jax.jit(jax.vmap(fresh))(jnp.array(seeds)))
        for i, seed in enumerate(seeds):
            fresh_adapters[rank, seed] = {name: leaf[i] for name, leaf in stacked.items()}
    return [
        apply_adapter_start(setup, fresh_adapters[member.rank, member.seed], leaves)
        for member, setup in zip(members, setups)
    ]


def make_packed_step(
    model: AdaptedModel,
    optimizer: optax.GradientTransformation,
    *,
    own_batches: bool = False,
    at_once: int | None = None,
    **options,
) -> Callable:
    """`(state, members, frozen, batch) -> (state, metrics)`, to be compiled with the state donated.

    Args:
      model: the model with the adapter at the largest sizes of the pack.
      optimizer: its updates must be proportional to its learning rate (see `train_pack`).
      own_batches: the batch's leaves are [B, A, ...], one batch per member, instead of [B, ...], one for all.
      at_once: see `map_members`.
      **options: `loss` and `microbatches` of `make_train_step`.

    Returns:
      The step. Its state has A of everything but the step's number; its metrics are float32 [A].
    """

    def member_step(state, member: Members, frozen, batch):
        def update(updates, state, params=None):
            updates, state = optimizer.update(updates, state, params)
            return jax.tree.map(lambda u: u * member.learning_rate, updates), state

        scaled_optimizer = optax.GradientTransformation(optimizer.init, update)
        constants = {"padding": {"adapter": member.padding}}
        step = make_train_step(model, scaled_optimizer, seed=member.seed, constants=constants, **options)
        state, metrics = step(state, frozen, batch)
        factor = lambda name: member.learning_rate if name.startswith("learning_rate") else 1.0
        return state, {name: value * factor(name) for name, value in metrics.items()}

    def packed_step(state, members, frozen, batch):
        def step_of_slice(member_slice):
            trainable, opt_state, member, own_batch = member_slice
            after, metrics = member_step(
                TrainState(state.step, trainable, opt_state), member, frozen, own_batch if own_batches else batch
            )
            return after.trainable, after.opt_state, metrics

        by_member = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), batch) if own_batches else members.seed
        mapped = (state.trainable, state.opt_state, members, by_member)
        trainable, opt_state, metrics = map_members(step_of_slice, mapped, at_once)
        return TrainState(state.step + 1, trainable, opt_state), metrics

    return packed_step


def map_members(function: Callable, members: Any, at_once: int | None) -> Any:
    """Maps `function` over the members, axis 0 of every leaf of `members`, and stacks the results.

    Args:
      function: takes one member's slice of `members`.
      members: a tree whose leaves have the A members on axis 0.
      at_once: how many members are computed at once, group after group. None is all of them, except on a CPU, whose caches
        hold one member better than many: there it is one.
    """
    count = len(jax.tree.leaves(members)[0])
    at_once = at_once or (1 if jax.default_backend() == "cpu" else count)
    return jax.lax.map(function, members, batch_size=at_once if at_once > 1 else None)


def pack_adapters(
    backbone: Backbone, members: Sequence[tuple[nn.Module, Mapping[str, Any]]]
) -> tuple[AdaptedModel, dict, dict]:
    """Adapters of one method at common sizes.

    Args:
      backbone: the module they were made for.
      members: `(module, parameters)` of each.

    Returns:
      The model with the largest adapter; the parameters and their padding, nested, each with the A members on axis 0.

    Raises:
      UserError: for adapters of different methods, settings or prompt lengths.
    """
    largest, params, padding = align(backbone, members)
    if any(not mask[:, 0].all() for mask in paths.flatten(padding).values()):  # padded on the left
        raise UserError(
            "The prompts of a pack must be of one length: dropout would differ from what each member has alone."
        )
    return AdaptedModel(backbone, largest), params, padding
