"""Packed training: several adapters in one program over one frozen backbone, each as it would be trained alone.

The step of one is mapped over the members (`jax.vmap`). The frozen tree and the batch are not: what depends on no adapter (the
embeddings, the vision tower) is computed once for all. Adapters of lower ranks are padded as in a bank; the padding's gradients are zero, so AdamW leaves it at
zero.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import flax.struct
import jax
import optax

from adalink_jax.adapters import AdaptedModel, abstract_params, align, unpad
from adalink_jax.errors import UserError
from adalink_jax.models import paths
from adalink_jax.training.step import TrainState, make_train_step

_AXES = TrainState(step=None, trainable=0, opt_state=0)  # all members are at the same step


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


def make_packed_step(model, optimizer: optax.GradientTransformation, **options) -> Callable:
    """`(state, members, frozen, batch) -> (state, metrics)`, to be compiled with the state donated.

    Args:
      model: with the adapter at the largest sizes of the pack.
      optimizer: its updates are in proportion to its learning rate, as optax's are.
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

    return jax.vmap(one, in_axes=(_AXES, 0, None, None), out_axes=(_AXES, 0))


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


def unpack_adapter(backbone: nn.Module, module: nn.Module, params, number: int) -> dict:
    """The adapter of one member, at its own sizes.

    Args:
      backbone, module: the member's.
      params: of the pack.
      number: of the member, from 0.
    """
    return unpad(jax.tree.map(lambda x: x[number], params), abstract_params(AdaptedModel(backbone, module))["adapter"])
