"""Where the decoder's weights are while an evaluation decodes.

With FSDP they are sharded over `data`, and every token of an output would gather them again. Gathered once before the first
token, each device holds them whole (but for tensor parallelism) until the batch is decoded.
"""

import math
from collections.abc import Mapping
from typing import Annotated

import flax.linen as nn
import gin
import jax

from adalink_jax import parallel
from adalink_jax.adapters import AdaptedModel, abstract_params
from adalink_jax.models import paths
from adalink_jax.models.quantised import bits_of, gathered
from adalink_jax.parallel.accelerators import accelerator_of
from adalink_jax.training.partition import Leaves
from adalink_jax.typed_values import one_of

KINDS = ("auto", "sharded", "gathered")
LARGEST_SHARE = 1 / 3  # of a chip's memory, for "auto"


@gin.configurable
def decoder_weights(kind: Annotated[str, one_of(*KINDS)] = "auto") -> str:
    """The setting DECODER_WEIGHTS.

    Args:
      kind: "sharded" gathers the decoder's weights for each token, "gathered" once per batch; "auto" gathers them once if they take at
        most a third of a chip's memory (on CPUs always).
    """
    return kind


def placed(model: AdaptedModel, leaves: Leaves, kind: str) -> Leaves:
    """The leaves of a model as its decoding reads them; call it in a traced program, within `use_mesh`.

    Args:
      model: the model.
      leaves: all of its leaves, by name.
      kind: see `decoder_weights`.
    """
    sharded = _sharded(model, leaves)
    if kind == "sharded" or not sharded or (kind == "auto" and not _fits({name: leaves[name] for name in sharded})):
        return leaves
    return {**leaves, **{name: gathered(leaves[name], axes) for name, axes in sharded.items()}}


def _sharded(model: AdaptedModel, leaves: Leaves) -> Mapping[str, tuple[str | None, ...]]:
    """The leaves that a step of decoding reads and that are split over `data`, with their logical axes."""
    if not parallel.splits_parameters():
        return {}
    axes = paths.flatten(nn.get_partition_spec(abstract_params(model)))
    before = tuple(f"backbone/{part}/" for part in model.backbone.encoder_parts)
    return {name: tuple(axes[name]) for name in leaves if not name.startswith(before) and "embed" in axes[name]}


def _fits(leaves: Leaves) -> bool:
    """Whether whole leaves take a small share of a chip's memory."""
    mesh = jax.sharding.get_abstract_mesh()
    device = mesh.abstract_device
    chip = accelerator_of(device.device_kind) if device else None
    bits = sum(bits_of(x.dtype) * math.prod(x.shape) for x in jax.tree.leaves(leaves))
    size = bits / 8 / mesh.shape[parallel.MODEL]
    return chip is None or size <= LARGEST_SHARE * chip.memory
