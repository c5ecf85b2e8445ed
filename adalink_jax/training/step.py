"""The training step. Gradients exist for the trainable tree only: the frozen one is an argument, never differentiated."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import flax.struct
import gin
import jax
import jax.numpy as jnp
import optax

from adalink_jax import parallel
from adalink_jax.errors import UserError
from adalink_jax.training import optimizers, partition


@flax.struct.dataclass
class TrainState:
    """All that changes while training: step (int32), the trainable tree, the optimizer's state."""

    step: jax.Array
    trainable: dict
    opt_state: optax.OptState


@gin.configurable
@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """Sum of weighted cross-entropies, and the sum of weights (t5x's definition).

    Attributes:
      z_loss: factor of log(Z)^2, added to each token's loss.
      label_smoothing: mass spread evenly over the wrong tokens; the loss's minimum is kept at 0.
    """

    z_loss: float = 0.0
    label_smoothing: float = 0.0

    def __call__(self, logits: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        """logits float32 [B, T, V], targets int32 [B, T], weights float32 [B, T] -> two float32 scalars."""
        log_z = jax.nn.logsumexp(logits, axis=-1)
        loss = log_z - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        if self.label_smoothing:
            rest = logits.shape[-1] - 1
            high, low = 1 - self.label_smoothing, self.label_smoothing / rest
            wrong = logits.shape[-1] * log_z - logits.sum(-1) - loss  # summed over all tokens but the target
            floor = -(high * math.log(high) + rest * low * math.log(low))
            loss = high * loss + low * wrong - floor
        loss = loss + self.z_loss * jnp.square(log_z)
        return jnp.sum(loss * weights), jnp.sum(weights)


def make_train_step(
    model,
    optimizer: optax.GradientTransformation,
    *,
    loss: Callable = CrossEntropy(),
    seed: int = 0,
    microbatches: int = 1,
    shards: int = 1,
    constants: Mapping = MappingProxyType({}),
) -> Callable[[TrainState, dict, dict], tuple[TrainState, dict]]:
    """`(state, frozen, batch) -> (state, metrics)`, to be compiled with the state donated.

    The loss is the mean over all weighted tokens of the global batch, however it is cut into microbatches: losses,
    weights and gradients are summed, and divided once. Gradients cross devices once a step: over microbatches each of the
    `shards` of the batch sums its own (left to the compiler, some backends would reduce those of every microbatch).

    Args:
      model: `model.apply({"params": ...}, batch, train=True, rngs=...)` -> logits float32 [B, T, V].
      optimizer: for the trainable tree.
      loss: `(logits, targets, weights) -> (sum of losses, sum of weights)`.
      seed: of dropout, an int or a traced int32; the step's number is folded in. Its masks are the same on every mesh, but
        for microbatches on several shards.
      microbatches: parts that the batch's rows are cut into, one after the other; it must divide B.
      shards: groups of devices that split the batch and hold all trainable leaves (`parallel.data_axis_size`); 1 where a
        trainable leaf is itself split over them, and its gradient is reduced for every microbatch.
      constants: collections of the model besides its parameters (the padding of an adapter in a pack).

    Returns:
      metrics: float32 scalars `loss`, `grad_norm` (of the trainable tree), `tokens` (sum of weights), learning rates.
    """

    def loss_fn(trainable, frozen, batch, rng):
        params = partition.merge(trainable, frozen)
        logits = model.apply({"params": params, **constants}, batch, train=True, rngs={"dropout": rng})
        return loss(logits, batch["decoder_target_tokens"], batch["decoder_loss_weights"])

    summed_grads = jax.value_and_grad(loss_fn, has_aux=True)

    def accumulate(state, frozen, batch, rng):
        if microbatches == 1:
            return summed_grads(state.trainable, frozen, batch, rng)
        # Row r goes to microbatch r % microbatches: every device keeps the rows that it already has.
        parts = jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch)
        part_grads = summed_grads
        if shards > 1:
            parts = jax.tree.map(lambda x: x.reshape(microbatches, shards, -1, *x.shape[2:]), parts)
            part_grads = lambda trainable, frozen, part, rng: parallel.by_shard(
                lambda mine, key: summed_grads(trainable, frozen, mine, key), part, jax.random.split(rng, shards)
            )

        def add(total, part):
            rng, batch = part
            return jax.tree.map(jnp.add, total, part_grads(state.trainable, frozen, batch, rng)), None

        each = lambda x: jnp.zeros((shards, *x.shape) if shards > 1 else x.shape, x.dtype)
        start = jax.tree.map(each, ((jnp.float32(0), jnp.float32(0)), state.trainable))
        start = parallel.constrain_shards(start) if shards > 1 else start
        total = jax.lax.scan(add, start, (jax.random.split(rng, microbatches), parts))[0]
        return jax.tree.map(lambda x: x.sum(0), total) if shards > 1 else total

    def train_step(state: TrainState, frozen: dict, batch: dict):
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        (loss_sum, tokens), grads = accumulate(state, frozen, batch, rng)
        tokens = jnp.maximum(tokens, 1.0)
        grads = jax.tree.map(lambda g: g / tokens, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        metrics = {
            "loss": loss_sum / tokens,
            "grad_norm": optax.tree.norm(grads),
            "tokens": tokens,
            **optimizers.learning_rates(opt_state),
        }
        trainable = optax.apply_updates(state.trainable, updates)
        return TrainState(state.step + 1, trainable, opt_state), metrics

    return train_step


def check_batch(batch_size: int, microbatches: int, data_devices: int) -> None:
    """Refuses a batch that cannot be cut evenly.

    Raises:
      UserError: names the sizes and the nearest batch size that would do.
    """
    unit = microbatches * data_devices
    if microbatches < 1 or batch_size < 1 or batch_size % unit:
        nearest = max(1, round(batch_size / max(unit, 1))) * unit
        raise UserError(
            f"BATCH_SIZE = {batch_size} does not divide over {data_devices} devices of the data axis x {microbatches} "
            f"microbatches; the nearest that does is {nearest}."
        )
