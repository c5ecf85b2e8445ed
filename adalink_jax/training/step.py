"""The training step. Gradients exist for trainable leaves only: the frozen leaves are an argument that is never differentiated.

Parameters are flat mappings `{name: array}`; the step nests them only for `model.apply`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

import flax.linen as nn
import flax.struct
import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from adalink_jax import parallel
from adalink_jax.errors import UserError
from adalink_jax.training import optimizers, partition
from adalink_jax.training.partition import Leaves
from adalink_jax.training.token_losses import token_losses
from adalink_jax.typed_values import Fraction, NonNegativeFloat


@flax.struct.dataclass
class TrainState:
    """Everything that changes while training: step (int32), the trainable leaves by name, the optimizer's state."""

    step: jax.Array
    trainable: Leaves
    opt_state: optax.OptState


@gin.configurable
@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """The cross-entropy of each token (t5x's definition).

    Attributes:
      z_loss: factor of log(Z)^2, added to each token's loss.
      label_smoothing: probability mass spread evenly over the wrong tokens; the loss is shifted so that its minimum stays 0.
    """

    z_loss: NonNegativeFloat = 0.0
    label_smoothing: Fraction = 0.0

    def __call__(
        self, logits: Float[jax.Array, "B T V"], targets: Int[jax.Array | np.ndarray, "B T"]
    ) -> Float[jax.Array, "B T"]:
        """Returns each token's loss, float32."""
        log_z = jax.nn.logsumexp(logits, axis=-1)
        loss = log_z - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        if self.label_smoothing:
            rest = logits.shape[-1] - 1
            high, low = 1 - self.label_smoothing, self.label_smoothing / rest
            wrong = logits.shape[-1] * log_z - logits.sum(-1) - loss  # summed over all tokens but the target
            floor = -(high * math.log(high) + rest * low * math.log(low))
            loss = high * loss + low * wrong - floor
        return loss + self.z_loss * jnp.square(log_z)


def make_loss(
    model: nn.Module, loss: Callable = CrossEntropy(), constants: Mapping[str, Any] = MappingProxyType({})
) -> Callable[[Leaves, Leaves, Leaves, jax.Array | None], tuple[jax.Array, jax.Array]]:
    """`(trainable, frozen, batch, key of dropout) -> (sum of weighted losses, sum of weights)`, which a step differentiates.

    The arguments are those of `make_train_step`. With None for the key, nothing is dropped.
    """

    def summed_loss(trainable, frozen, batch, rng):
        variables = {"params": partition.merge(trainable, frozen), **constants}
        rngs = {} if rng is None else {"dropout": rng}
        states: Any = model.apply(variables, batch, train=rng is not None, rngs=rngs, method="states")
        head: Any = lambda states: model.apply(variables, states, batch.get("adapter_index"), method="logits")
        losses = token_losses(loss, head, states, batch["decoder_target_tokens"])
        weights = batch["decoder_loss_weights"]
        return jnp.sum(losses * weights), jnp.sum(weights)

    return summed_loss


def make_gradients(
    model: nn.Module,
    *,
    loss: Callable = CrossEntropy(),
    seed: int | jax.Array = 0,
    microbatches: int = 1,
    shards: int = 1,
    constants: Mapping[str, Any] = MappingProxyType({}),
) -> Callable[[TrainState, Leaves, Leaves], tuple[tuple[jax.Array, jax.Array], Leaves]]:
    """`(state, frozen, batch) -> ((sum of weighted losses, sum of weights), gradients)`, both summed over the global batch.

    The arguments are those of `make_train_step`.
    """
    summed_grads = jax.value_and_grad(make_loss(model, loss, constants), has_aux=True)

    def gradients(state, frozen, batch):
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        if microbatches == 1:
            return summed_grads(state.trainable, frozen, batch, rng)
        # Row r goes to microbatch r % microbatches, so every device keeps the rows that it already has.
        parts = jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch)
        part_grads = summed_grads
        if shards > 1:
            parts = jax.tree.map(lambda x: x.reshape(microbatches, shards, -1, *x.shape[2:]), parts)
            part_grads = lambda trainable, frozen, part, rng: parallel.by_shard(
                lambda rows, key: summed_grads(trainable, frozen, rows, key), part, jax.random.split(rng, shards)
            )

        def add(total, part):
            rng, batch = part
            return jax.tree.map(jnp.add, total, part_grads(state.trainable, frozen, batch, rng)), None

        zeros = lambda x: jnp.zeros((shards, *x.shape) if shards > 1 else x.shape, x.dtype)
        start = jax.tree.map(zeros, ((jnp.float32(0), jnp.float32(0)), state.trainable))
        start = parallel.constrain_shards(start) if shards > 1 else start
        total = jax.lax.scan(add, start, (jax.random.split(rng, microbatches), parts))[0]
        return jax.tree.map(lambda x: x.sum(0), total) if shards > 1 else total

    return gradients


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    loss: Callable = CrossEntropy(),
    seed: int | jax.Array = 0,
    microbatches: int = 1,
    shards: int = 1,
    constants: Mapping[str, Any] = MappingProxyType({}),
) -> Callable[[TrainState, Leaves, Leaves], tuple[TrainState, dict[str, jax.Array]]]:
    """`(state, frozen, batch) -> (state, metrics)`, to be compiled with the state donated.

    The loss is the mean over all weighted tokens of the global batch, for any number of microbatches: losses, weights and
    gradients are summed, and divided once. Gradients cross devices once per step: over the microbatches, each of the `shards`
    of the batch sums its own (left to the compiler, some backends would reduce them after every microbatch).

    Args:
      model: has the methods `states(batch, train)` -> decoder states [B, T, D] and `logits(states, adapter_index)` -> float32
        [B, T, V] of an `AdaptedModel`.
      optimizer: for the trainable leaves.
      loss: `(logits [B, T, V], targets [B, T]) -> losses [B, T]`; a token's loss depends on its own logits only.
      seed: of dropout, an int or a traced int32; the step's number is folded in. The dropout masks are the same on every mesh,
        except with microbatches on several shards.
      microbatches: parts that the batch's rows are divided into, computed one after the other; it must divide B.
      shards: groups of devices that split the batch and hold all trainable leaves (`parallel.data_axis_size`); 1 if a
        trainable leaf is itself split over them, and its gradient is reduced for every microbatch.
      constants: collections of the model other than its parameters (the padding of an adapter in a pack).

    Returns:
      The step. Its metrics are float32 scalars: `loss`, `grad_norm` (of the trainable leaves), `tokens` (sum of weights),
      learning rates and, with packed examples, those of `packing_metrics`.
    """

    gradients = make_gradients(
        model, loss=loss, seed=seed, microbatches=microbatches, shards=shards, constants=constants
    )

    def train_step(state: TrainState, frozen: Leaves, batch: Leaves) -> tuple[TrainState, dict[str, jax.Array]]:
        (loss_sum, tokens), grads = gradients(state, frozen, batch)
        tokens = jnp.maximum(tokens, 1.0)
        grads = jax.tree.map(lambda g: g / tokens, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        metrics = {
            "loss": loss_sum / tokens,
            "grad_norm": optax.tree.norm(grads),
            **grad_norms(grads),
            "tokens": tokens,
            **optimizers.learning_rates(opt_state),
            **packing_metrics(batch),
        }
        trainable = optax.apply_updates(state.trainable, updates)
        return TrainState(state.step + 1, cast(Leaves, trainable), opt_state), metrics

    return train_step


def grad_norms(grads: Leaves) -> dict[str, jax.Array]:
    """The gradient's norm of each part of the model, by the first two words of its leaves' names: `grad_norm/adapter/image` of a
    modality, `grad_norm/backbone/encoder`; empty if there is one part."""
    parts: dict[str, list[jax.Array]] = {}
    for name, grad in grads.items():
        parts.setdefault("/".join(name.split("/")[:2]), []).append(grad)
    return {f"grad_norm/{part}": optax.tree.norm(leaves) for part, leaves in parts.items()} if len(parts) > 1 else {}


def packing_metrics(batch: Leaves) -> dict[str, jax.Array]:
    """How packed examples fill their rows; empty for rows of one example.

    Returns:
      `examples`, their number; `examples_per_row`; `non_padding_fraction`, the share of the encoder's and decoder's positions that hold
      a token.
    """
    if "encoder_segment_ids" not in batch:
        return {}
    segments = [batch[f"{side}_segment_ids"] for side in ("encoder", "decoder")]
    examples = functools.reduce(jnp.maximum, [jnp.max(side, axis=-1) for side in segments]).astype(jnp.float32)
    tokens = jnp.array([jnp.count_nonzero(side) for side in segments])
    return {
        "examples": jnp.sum(examples),
        "examples_per_row": jnp.mean(examples),
        "non_padding_fraction": jnp.sum(tokens) / sum(side.size for side in segments),
    }


def check_batch(batch_size: int, microbatches: int, data_devices: int) -> None:
    """Refuses a batch that cannot be divided evenly.

    Raises:
      UserError: names the sizes and the nearest batch size that can.
    """
    unit = microbatches * data_devices
    if microbatches < 1 or batch_size < 1 or batch_size % unit:
        nearest = max(1, round(batch_size / max(unit, 1))) * unit
        raise UserError(
            f"BATCH_SIZE = {batch_size} does not divide over {data_devices} devices of the data axis x {microbatches} "
            f"microbatches; the nearest that does is {nearest}."
        )
