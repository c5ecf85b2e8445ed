"""Optimizers and schedules for gin. The transformations are optax's; this module names them and their settings.

Every optimizer keeps its current learning rate in its state (`optax.inject_hyperparams`), so the logged rate is the applied one.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

import gin
import jax
import jax.numpy as jnp
import optax

from adalink_jax.errors import UserError
from adalink_jax.models import paths
from adalink_jax.typed_values import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, shown

LearningRate = PositiveFloat | Callable
WARMUP_STEPS = 50


@gin.configurable
def constant(value: PositiveFloat) -> Callable:
    """The same learning rate at every step."""
    return optax.constant_schedule(value)


@gin.configurable
def warmup_cosine(
    peak: PositiveFloat, total_steps: PositiveInt, warmup_steps: NonNegativeInt | None = 0, end: NonNegativeFloat = 0.0
) -> Callable:
    """Linear from 0 to `peak` in `warmup_steps`, then half a cosine to `end` at `total_steps`.

    `warmup_steps` None is WARMUP_STEPS, and at most half of the steps.

    Raises:
      UserError: if the warm-up leaves no step for the cosine.
    """
    warmup_steps = min(WARMUP_STEPS, total_steps // 2) if warmup_steps is None else warmup_steps
    if not 0 <= warmup_steps < total_steps:
        raise UserError(
            f"warmup_cosine.warmup_steps (WARMUP_STEPS) is {warmup_steps} and total_steps (TRAIN_STEPS) is "
            f"{total_steps}; the warm-up must be shorter."
        )
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, total_steps, end)


@gin.configurable
def warmup_constant(peak: PositiveFloat, warmup_steps: NonNegativeInt | None = 0) -> Callable:
    """Linear from 0 to `peak` in `warmup_steps` (None: 50), then constant at `peak`: for runs that end at their plateau."""
    warmup_steps = WARMUP_STEPS if warmup_steps is None else warmup_steps
    return optax.linear_schedule(0.0, peak, warmup_steps) if warmup_steps else optax.constant_schedule(peak)


@gin.configurable
def warmup_rsqrt(peak: PositiveFloat, warmup_steps: PositiveInt) -> Callable:
    """Linear from 0 to `peak` in `warmup_steps`, then `peak * sqrt(warmup_steps / step)` (T5's decay)."""
    return lambda step: peak * jnp.minimum(step / warmup_steps, jnp.sqrt(warmup_steps / jnp.maximum(step, 1)))


def _with_logged_rate(
    make: Callable, learning_rate: LearningRate, clip_norm: float | None
) -> optax.GradientTransformation:
    if callable(learning_rate):
        try:
            jax.eval_shape(lambda step: jnp.float32(learning_rate(step)), jnp.int32(0))
        except Exception as e:
            raise UserError(
                f"The learning rate is {shown(learning_rate)}, which gives no number for a step; give a number or a schedule, "
                f"such as @warmup_cosine()."
            ) from e
    optimizer = optax.inject_hyperparams(make)(learning_rate=learning_rate)
    return optimizer if clip_norm is None else optax.chain(_clip(clip_norm), optimizer)


def _clip(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm`, except that the norm may be given: within `grouped`, it is that of all groups together."""

    def update(updates, state, params=None, *, global_norm=None, **extra):
        norm = optax.tree.norm(updates) if global_norm is None else global_norm
        clip = lambda x: jnp.where(norm < max_norm, x, (x / norm.astype(x.dtype)) * max_norm)
        return jax.tree.map(clip, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


@gin.configurable
def adamw(
    learning_rate: LearningRate,
    weight_decay: NonNegativeFloat = 0.0,
    b1: Fraction = 0.9,
    b2: Fraction = 0.999,
    eps: NonNegativeFloat = 1e-8,
    clip_norm: PositiveFloat | None = None,
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter, 2019), optionally after clipping the trainable gradients' global norm."""
    make = lambda learning_rate: optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay)
    return _with_logged_rate(make, learning_rate, clip_norm)


@gin.configurable
def adafactor(
    learning_rate: LearningRate,
    decay_rate: Fraction = 0.8,
    multiply_by_parameter_scale: bool = False,
    weight_decay: NonNegativeFloat | None = None,
    clip_norm: PositiveFloat | None = None,
) -> optax.GradientTransformation:
    """Adafactor (Shazeer and Stern, 2018) without momentum; T5's and prompt tuning's optimizer."""
    make = lambda learning_rate: optax.adafactor(
        learning_rate,
        decay_rate=decay_rate,
        multiply_by_parameter_scale=multiply_by_parameter_scale,
        weight_decay_rate=weight_decay,
    )
    return _with_logged_rate(make, learning_rate, clip_norm)


@gin.configurable
def grouped(
    default: optax.GradientTransformation, groups: Mapping[str, optax.GradientTransformation]
) -> optax.GradientTransformation:
    """One optimizer, and so one learning rate, per group of parameters; `clip_norm` clips by the norm of all groups' gradients.

    Args:
      default: for all leaves that are in no group.
      groups: regular expression -> optimizer, such as `{'adapter/image/.*': @image/adamw()}`. The first match wins.

    Raises:
      UserError: from `init`, if an expression matches no trainable leaf (see `paths.matching`).
    """

    def labels(tree):
        picked = paths.matching(list(groups), paths.leaf_names(tree), "grouped.groups")
        group_of = lambda name: next((e for e, names in zip(groups, picked) if name in names), "default")
        name_of = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
        return jax.tree_util.tree_map_with_path(lambda path, _: group_of(name_of(path)), tree)

    partitioned = optax.partition({**groups, "default": default}, labels)

    def update(updates, state, params=None, **extra):
        return partitioned.update(updates, state, params, global_norm=optax.tree.norm(updates), **extra)

    return optax.GradientTransformationExtraArgs(partitioned.init, update)


def learning_rates(opt_state: optax.OptState) -> dict[str, jax.Array]:
    """The rates that the latest step applied: `{"learning_rate": ...}`, or `learning_rate/<expression>` per group."""
    rates = {}
    for path, hyperparams in cast(Any, optax.tree.get_all_with_path(opt_state, "hyperparams")):
        # optax.partition's states are in a dict
        group = next((key.key for key in path if isinstance(key, jax.tree_util.DictKey)), None)
        rates["learning_rate" if group is None else f"learning_rate/{group}"] = hyperparams["learning_rate"]
    return rates
