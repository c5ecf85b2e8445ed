"""What both exports read: an adapter of what enters the encoder, its module, parameters and facts."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from adalink_jax.adapters import make_adapter
from adalink_jax.checkpoints import AdapterFacts, read_adapter
from adalink_jax.errors import CheckpointError, UserError
from adalink_jax.models import Inputs, paths

_ALONE = {("text",): "the text alone", ("text", "image"): "text and images"}


def read_exported_adapter(
    folder: str, kinds_of: Callable[[AdapterFacts], tuple[str, ...]] = lambda facts: ("text",)
) -> tuple[nn.Module, dict[str, Any], AdapterFacts]:
    """Reads an adapter whose kinds of input can all be exported.

    Args:
      folder: the adapter's folder.
      kinds_of: the kinds that can be exported, of "text" and "image".

    Returns:
      Its module, its parameters as Flax takes them, and its facts.

    Raises:
      CheckpointError: for a folder that is not an adapter, and leaves that are not those of its method and settings.
      UserError: for an adapter of other inputs.
    """
    leaves, facts = read_adapter(folder)
    module = make_adapter(facts.method, facts.settings)
    tops = sorted({name.split("/")[0] for name in leaves})
    kinds = kinds_of(facts)
    if not getattr(module, "per_token", False) or not {*(module.kinds or kinds), *tops} <= {*kinds, "shared"}:
        raise UserError(
            f"The adapter {folder} has {', '.join(tops)}; only an adapter of {_ALONE[kinds]} can be exported. "
            f"`adalink adapters fold` folds one of images into a native base, which `adalink convert` may write for transformers."
        )
    width = next((leaf.shape[0] for name, leaf in leaves.items() if name.endswith("/down") and leaf.ndim), 1)
    inputs = Inputs(**{kind: jnp.zeros((1, 1, width)) for kind in kinds})
    wanted = paths.flatten(nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), inputs))["params"])
    shapes, wanted_shapes = paths.unscanned_shapes(leaves), paths.unscanned_shapes(wanted)
    if shapes != wanted_shapes:
        raise CheckpointError(
            f"The adapter {folder} holds {shapes}, but {facts.method} of its settings has {wanted_shapes}: it is damaged, so "
            f"copy or train it again."
        )
    return module, paths.unflatten(leaves), facts
