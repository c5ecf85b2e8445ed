"""Packed training: several adapters in one program over one frozen backbone, each as it would be trained alone.

The step of one is mapped over the members. The frozen tree is not, nor is a batch that all share: members that are computed at
once then share what depends on no adapter (the embeddings, the vision tower). Adapters of lower ranks are padded as in a bank;
the padding's gradients are zero, so AdamW leaves it at zero.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import flax.linen as nn
import flax.struct
import gin
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from adalink_jax import parallel
from adalink_jax.adapters import AdaptedModel, abstract_params, align, fresh_params, unpad
from adalink_jax.errors import UserError
from adalink_jax.models import paths
from adalink_jax.training import partition
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


@dataclasses.dataclass(frozen=True)
class Member:
    """What one member has of its own.

    Attributes:
      learning_rate: the peak of its schedule.
      seed: of its first values, its dropout and the order of its data.
      rank: of its adapter; None for the method's own.
    """

    learning_rate: float
    seed: int
    rank: int | None = None

    @property
    def name(self) -> str:
        """Of its folder."""
        rank = "" if self.rank is None else f"rank_{self.rank}_"
        return f"{rank}lr_{self.learning_rate:g}_seed_{self.seed}"

    def setup(self, setup: Setup) -> Setup:
        """What it would be trained with alone."""
        model = setup.model
        if self.rank is not None:
            model = AdaptedModel(model.backbone, with_rank(model.adapter, self.rank))
        dataset = dataclasses.replace(setup.dataset, seed=self.seed)
        return dataclasses.replace(setup, model=model, random_seed=self.seed, dataset=dataset)


@gin.configurable
def learning_rates_around(center: float, factors: Sequence[float] = (0.1, 0.3, 1.0, 3.0, 10.0)) -> tuple[float, ...]:
    """`center` times each of `factors`, to three digits: what `adalink tune` tries."""
    return tuple(float(f"{center * factor:.3g}") for factor in factors)


def grid(learning_rates: Sequence[float], seeds: Sequence[int], ranks: Sequence[int] | None) -> list[Member]:
    """Every combination.

    Raises:
      UserError: for an empty list, a value that stands twice, and what is no number.
    """
    axes = {"LEARNING_RATES": learning_rates, "SEEDS": seeds, "RANKS": (None,) if ranks is None else ranks}
    for name, values in axes.items():
        kind = float | int if name == "LEARNING_RATES" else int
        right = isinstance(values, (tuple, list)) and all(isinstance(x, kind) or x is None for x in values)
        if not right or not values or len(set(values)) < len(values):
            numbers = "numbers" if name == "LEARNING_RATES" else "integers"
            raise UserError(f"{name} is {values!r}; it must be a tuple of one or more {numbers}, each once.")
    product = itertools.product(axes["RANKS"], learning_rates, seeds)
    return [Member(rate, seed, rank) for rank, rate, seed in product]


def with_rank(adapter: nn.Module | None, rank: int) -> nn.Module:
    """`adapter`, and every adapter that it is made of, at another rank.

    Raises:
      UserError: if it has none.
    """

    def parts(module):
        fields = {field.name: getattr(module, field.name) for field in dataclasses.fields(module)}
        return {name: value for name, value in fields.items() if isinstance(value, tuple) and _modules(value)}

    def changed(module):
        inside = {name: tuple(map(changed, value)) for name, value in parts(module).items()}
        own = {"rank": rank} if hasattr(module, "rank") else {}
        return module.clone(parent=None, name=None, **inside, **own)

    def has_rank(module):
        return hasattr(module, "rank") or any(has_rank(x) for value in parts(module).values() for x in value)

    if adapter is None or not has_rank(adapter):
        name = "full fine-tuning" if adapter is None else type(adapter).__name__
        raise UserError(f"RANKS is set, but {name} has no rank; leave RANKS at None.")
    return changed(adapter)


def _modules(values: tuple) -> bool:
    return any(isinstance(value, nn.Module) for value in values)


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
    if "adapter" in params.frozen:
        raise UserError("A pack trains whole adapters; TRAINABLE must match every leaf of the adapter.")
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
      optimizer: its updates are in proportion to its learning rate, as optax's are.
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
