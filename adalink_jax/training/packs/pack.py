"""Packed training: several adapters in one program over one frozen backbone, each as it would be trained alone.

The step of one is mapped over the members. The frozen tree is not, nor is a batch that all share: members that are computed at
once then share what depends on no adapter (the embeddings, the vision tower). Adapters of lower ranks are padded as in a bank;
the padding's gradients are zero, so AdamW leaves it at zero.
"""

import dataclasses
from collections.abc import Callable, Sequence

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from adalink_jax import parallel
from adalink_jax.adapters import AdaptedModel, abstract_params, align, fresh_params, unpad, widest
from adalink_jax.errors import UserError
from adalink_jax.models import paths
from adalink_jax.training import abstract, partition
from adalink_jax.training.packs.members import Member
from adalink_jax.training.setup import Parameters, Setup, load_parameters, started
from adalink_jax.training.step import TrainState, make_train_step


@flax.struct.dataclass
class Members:
    """What tells the members apart; A of them on axis 0.

    Attributes:
      seed: int32 [A], of dropout.
      learning_rate: float32 [A], factors of the optimizer's learning rate.
      padding: masks of the adapters' leaves (see `adapters.align`); {} where none can be padded.
    """

    seed: jax.Array
    learning_rate: jax.Array
    padding: dict


@dataclasses.dataclass
class Pack:
    """Members in memory.

    Attributes:
      setups: what each would be trained with alone.
      model: with the adapter at the largest sizes.
      trainable: the parameters to train, the members on axis 0.
      members: what tells them apart.
      params: the first member's, as it would be alone; its `frozen` is all members'.
    """

    setups: list[Setup]
    model: AdaptedModel
    trainable: dict
    members: Members
    params: Parameters

    def member(self, trainable: dict, number: int) -> dict:
        """The trainable tree of one member at its own sizes."""
        mine = jax.tree.map(lambda x: x[number], trainable)
        if "adapter" in mine:
            mine["adapter"] = unpad(mine["adapter"], abstract_params(self.setups[number].model)["adapter"])
        return mine


def load_pack(setup: Setup, members: Sequence[Member], mesh, rules) -> Pack:
    """Reads the base once, and makes every member's first values as they would be alone.

    Raises:
      UserError: for a base that is not read from files, an adapter of which a part is frozen, and members that do not fit
        one program.
      CheckpointError: for files that do not fit.
    """
    if setup.initial_checkpoint_path is None:
        raise UserError("The members of a pack share a base; set INITIAL_CHECKPOINT_PATH.")
    setups = [member.setup(setup) for member in members]
    params = load_parameters(setups[0], mesh, rules)
    _check_whole(params.frozen)
    model, padding, trainable = setup.model, {}, {}
    if "adapter" in params.trainable:
        model, trainable["adapter"], padding = pack_adapters(
            setup.model.backbone, list(zip((each.model.adapter for each in setups), _adapters(setups, members, params)))
        )
    if "backbone" in params.trainable:
        copies = lambda x: jnp.broadcast_to(x, (len(members), *x.shape))
        trainable["backbone"] = jax.tree.map(copies, params.trainable["backbone"])
    shardings = paths.flatten(parallel.param_shardings(abstract_params(model), mesh, rules))
    placed = {
        name: jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(None, *shardings[name].spec)))
        for name, leaf in paths.flatten(trainable).items()
    }
    what = Members(
        jnp.array([member.seed for member in members], jnp.int32),
        jnp.array([member.learning_rate for member in members], jnp.float32),
        padding,
    )
    return Pack(setups, model, paths.unflatten(placed), what, params)


def abstract_pack(
    setup: Setup, members: Sequence[Member], optimizer: optax.GradientTransformation, mesh, rules
) -> tuple[AdaptedModel, TrainState, Members, dict]:
    """A pack before there are any arrays: its model, and `(state, members, frozen)` of its step, shapes with their places.

    Raises:
      UserError: for members that do not fit one program, and as `abstract.abstract_state`.
    """
    alone, frozen = abstract.abstract_state(setup.model, setup.trainable, setup.frozen_dtype, optimizer, mesh, rules)
    _check_whole(frozen)
    model, padding = setup.model, {}
    if "adapter" in alone.trainable:
        zeros = lambda box: jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), parallel.unbox(box))
        models = [member.setup(setup).model for member in members]
        own = [(each.adapter, zeros(abstract_params(each)["adapter"])) for each in models]
        model = AdaptedModel(model.backbone, widest([module for module, _ in own]))
        padding = jax.eval_shape(lambda: align(model.backbone, own)[2])
    leaves = paths.unflatten(abstract.abstract_leaves(model, mesh, rules))
    many = lambda x: jax.ShapeDtypeStruct(
        (len(members), *x.shape), x.dtype, sharding=NamedSharding(mesh, PartitionSpec(None, *x.sharding.spec))
    )
    trainable = jax.tree.map(many, partition.split(leaves, setup.trainable)[0])
    everywhere = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=parallel.replicated(mesh))
    what = Members(
        everywhere((len(members),), jnp.int32),
        everywhere((len(members),), jnp.float32),
        jax.tree.map(lambda mask: everywhere(mask.shape, mask.dtype), padding),
    )
    opt_state = abstract.abstract_optimizer(jax.vmap(optimizer.init), trainable, mesh)
    return model, TrainState(alone.step, trainable, opt_state), what, frozen


def _check_whole(frozen: dict) -> None:
    if "adapter" in frozen:
        raise UserError("A pack trains whole adapters; TRAINABLE must match every leaf of the adapter.")


def _adapters(setups: Sequence[Setup], members: Sequence[Member], params: Parameters) -> list[dict]:
    """The first values of each member's adapter; those of one rank are made by one program."""
    if setups[0].initial_adapter_path is not None:
        return [params.trainable["adapter"]] * len(setups)
    made, leaves = {}, paths.flatten(partition.merge(params.trainable, params.frozen))
    for rank, model in {member.rank: setup.model for member, setup in zip(members, setups)}.items():
        seeds = sorted({member.seed for member in members if member.rank == rank})
        fresh = lambda seed, model=model: parallel.unbox(fresh_params(model, seed)["adapter"])
        stacked = jax.device_get(jax.jit(jax.vmap(fresh))(jnp.array(seeds)))
        made |= {(rank, seed): jax.tree.map(lambda x, i=i: x[i], stacked) for i, seed in enumerate(seeds)}
    return [started(setup, made[member.rank, member.seed], leaves) for member, setup in zip(members, setups)]


def make_packed_step(
    model,
    optimizer: optax.GradientTransformation,
    *,
    own_batches: bool = False,
    at_once: int | None = None,
    **options,
) -> Callable:
    """`(state, members, frozen, batch) -> (state, metrics)`, to be compiled with the state donated.

    Args:
      model: with the adapter at the largest sizes of the pack.
      optimizer: its updates are in proportion to its learning rate (see `train_pack`).
      own_batches: the batch's leaves are [B, A, ...], a batch for each member, and not [B, ...], one for all.
      at_once: see `map_members`.
      **options: `loss` and `microbatches` of `make_train_step`.

    Returns:
      The state holds A of everything but the step; metrics are float32 [A].
    """

    def one(state, member: Members, frozen, batch):
        def update(grads, opt_state, params):
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return jax.tree.map(lambda u: u * member.learning_rate, updates), opt_state

        mine = optax.GradientTransformation(optimizer.init, update)
        constants = {"padding": {"adapter": member.padding}}
        step = make_train_step(model, mine, seed=member.seed, constants=constants, **options)
        state, metrics = step(state, frozen, batch)
        scaled = lambda name: member.learning_rate if name.startswith("learning_rate") else 1.0
        return state, {name: value * scaled(name) for name, value in metrics.items()}

    def packed_step(state, members, frozen, batch):
        def of_member(mine):
            trainable, opt_state, member, own = mine
            after, metrics = one(
                TrainState(state.step, trainable, opt_state), member, frozen, own if own_batches else batch
            )
            return after.trainable, after.opt_state, metrics

        own = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), batch) if own_batches else members.seed
        each = (state.trainable, state.opt_state, members, own)
        trainable, opt_state, metrics = map_members(of_member, each, at_once)
        return TrainState(state.step + 1, trainable, opt_state), metrics

    return packed_step


def map_members(function: Callable, members, at_once: int | None):
    """`function` of each member's slice of the tree `members`, whose leaves have A on axis 0; the results, stacked.

    Args:
      at_once: how many are computed at once; the others follow. None is all of them, but on a CPU, whose caches hold one
        member better than many, one.
    """
    count = len(jax.tree.leaves(members)[0])
    at_once = at_once or (1 if jax.default_backend() == "cpu" else count)
    return jax.lax.map(function, members, batch_size=at_once if at_once > 1 else None)


def pack_adapters(backbone: nn.Module, members: Sequence[tuple[nn.Module, dict]]) -> tuple[AdaptedModel, dict, dict]:
    """Adapters of one method at common sizes.

    Args:
      backbone: what they are for.
      members: `(module, parameters)` of each.

    Returns:
      The model with the largest adapter; the parameters and their padding, each with A on axis 0.

    Raises:
      UserError: for adapters of different methods, settings or prompt lengths.
    """
    largest, params, padding = align(backbone, members)
    if any(not mask[:, 0].all() for mask in paths.flatten(padding).values()):  # padded on the left
        raise UserError("The prompts of a pack must be of one length: dropout would not be what each has alone.")
    return AdaptedModel(backbone, largest), params, padding
