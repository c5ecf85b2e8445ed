"""Running a stack of equal layers, scanned or unrolled, with optional remat.

A layer is a module whose call is `(x, per_layer, *shared) -> (x, per_layer)`: `x` flows through, `per_layer` has one
slice a layer (the decoding cache, or None), `shared` is the same for all. Parameters live under `layers_0`, `layers_1`,
... when unrolled and stacked on axis 0 under `layers` when scanned; `adalink_jax.models.paths` translates the names.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from adalink_jax.errors import UserError

SAVE = "save:"
NAMED = ("projections", "attention_out", "mlp_hidden", "mlp_out")  # as layers.py names them


def remat_policy(remat: str):
    """What the backward pass finds kept: nothing ("full"), products without a batch axis ("dots"), or the tensors named
    behind "save:", such as "save:attention_out,mlp_out".

    Raises:
      UserError: for anything else.
    """
    if remat == "full":
        return None
    if remat == "dots":
        return jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    names = remat.removeprefix(SAVE).split(",")
    if not remat.startswith(SAVE) or not set(names) <= set(NAMED):
        raise UserError(
            f"REMAT is {remat!r}; it must be 'none', 'full', 'dots', or '{SAVE}' and some of {','.join(NAMED)}."
        )
    return jax.checkpoint_policies.save_only_these_names(*names)


def run_layers(layer_type: type[nn.Module], config, x, per_layer, *shared, num_layers: int, deterministic: bool):
    """Runs `num_layers` of `layer_type(config, deterministic)`; call it inside a compact method.

    Args:
      layer_type: the layer's class.
      config: passed to each layer; `scan_layers` (bool) and `remat` ("none", or see `remat_policy`) are read here.
      x: the carry, [B, length, D].
      per_layer: a pytree with a leading axis of `num_layers`, or None.
      *shared: arguments that every layer gets.

    Returns:
      The last layer's `x`, and the layers' `per_layer` results stacked on axis 0 (or None).
    """
    if config.remat != "none":
        layer_type = nn.remat(layer_type, prevent_cse=not config.scan_layers, policy=remat_policy(config.remat))
    if config.scan_layers:
        stack = nn.scan(
            layer_type,
            variable_axes={"params": 0, "adapter": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0,) + (nn.broadcast,) * len(shared),
            out_axes=0,
            length=num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return stack(config, deterministic, name="layers")(x, per_layer, *shared)
    results = []
    for i in range(num_layers):
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], per_layer)
        x, result = layer_type(config, deterministic, name=f"layers_{i}")(x, mine, *shared)
        results.append(result)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)
