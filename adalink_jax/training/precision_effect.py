"""How far an adapted model's outputs are on other precisions of its base than the adapter's own, on random inputs."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float

from adalink_jax import checkpoints, parallel
from adalink_jax.adapters import AdaptedModel, make_adapter
from adalink_jax.errors import UserError
from adalink_jax.models.backbone import Backbone
from adalink_jax.models.quantised import CODE_DTYPES, TABLE
from adalink_jax.training.fold import random_features
from adalink_jax.training.setup import Setup, load_parameters

EXACT = "exact"
_SHAPE = 8, 32, 16  # rows, input tokens and target tokens


@dataclasses.dataclass(frozen=True)
class Effect:
    """Outputs on one precision of the base, compared with those on the adapter's own.

    Attributes:
      precision: "exact", "int8", "int4/64", ...
      difference: root mean square difference of the logits, relative to their standard deviation.
      agreement: share of the positions at which the most likely token is the same.
    """

    precision: str
    difference: float
    agreement: float


def precision_effects(
    folder: str, backbone: Backbone, base: str, precisions: Sequence[str], exact: Sequence[str] = TABLE
) -> tuple[str, list[Effect]]:
    """Compares an adapter's outputs on several precisions of its base; one copy of the base is in memory at a time.

    Args:
      folder: the adapter's folder.
      backbone: the base's module.
      base: path of the exact base.
      precisions: "exact", or a quantised form with or without the size of its blocks ("int8", "int4/32").
      exact: QUANTISED_EXACT of all of them.

    Returns:
      The adapter's own precision, and an `Effect` of each other one.

    Raises:
      UserError: for an unknown precision, and for rules with which the adapter's own precision is not the one that it was trained on.
    """
    _, facts = checkpoints.open_adapter(folder)
    own_precision = facts.base.precision or EXACT
    module = make_adapter(facts.method, facts.settings)
    plain = Setup(
        AdaptedModel(backbone, module),
        initial_checkpoint_path=base,
        initial_adapter_path=folder,
        allow_other_precision=True,
    )
    batch = random_features(backbone, *_SHAPE)
    others = [precision for precision in dict.fromkeys(precisions) if precision != own_precision]
    setups = {precision: _stored(plain, precision, exact) for precision in (own_precision, *others)}
    reference = _logits(setups[own_precision], batch, facts)
    effects = []
    for precision in others:
        logits = _logits(setups[precision], batch)
        difference = np.sqrt(np.mean(np.square(logits - reference))) / reference.std()
        agreement = np.mean(logits.argmax(-1) == reference.argmax(-1))
        effects.append(Effect(precision, float(difference), float(agreement)))
    return own_precision, effects


def _stored(setup: Setup, precision: str, exact: Sequence[str]) -> Setup:
    """`setup` with the base in a precision."""
    kind, _, block = precision.partition("/")
    if precision == EXACT:
        return setup
    if kind not in CODE_DTYPES or not (block.isdecimal() and int(block) > 0 if "/" in precision else True):
        raise UserError(
            f"{precision!r} is not a valid precision; give {EXACT}, {', '.join(CODE_DTYPES)}, or one of these with its block, such as int4/32."
        )
    settings = {"frozen_dtype": kind, "quantised_block": int(block) if block else None, "quantised_exact": tuple(exact)}
    return dataclasses.replace(setup, **settings)


def _logits(
    setup: Setup, batch: Mapping[str, np.ndarray], facts: checkpoints.AdapterFacts | None = None
) -> Float[np.ndarray, "B T V"]:
    """Logits of the adapted model; with `facts`, the base must be the one that the adapter was trained on."""
    params = load_parameters(setup, parallel.make_mesh(), parallel.logical_axis_rules())
    if facts is not None and params.base is not None and params.base.fingerprint != facts.base.fingerprint:
        raise UserError(
            f"The base in {facts.base.precision} is not the one that the adapter was trained on, since other leaves were kept exact; "
            f"give its run's QUANTISED_EXACT with --exact."
        )
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(setup.model.apply)({"params": params.tree()}, batch), np.float32)
