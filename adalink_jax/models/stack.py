"""Runs a stack of equal layers, scanned or unrolled, with optional rematerialisation.

A layer is a module called as `(x, per_layer, *shared) -> (x, per_layer)`: `x` flows through the stack (an array, or a pytree
with the decoding cache), `per_layer` has one slice per layer, and `shared` is the same for all layers. Unrolled, parameters are under
`layers_0`, `layers_1`, ...; scanned, they are stacked on axis 0 under `layers`. `adalink_jax.models.paths` translates the names.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from adalink_jax.errors import UserError

SAVE = "save:"
# `checkpoint_name`s in layers.py, and of attention's softmax in attention/blockwise.py.
NAMED = ("projections", "attention_softmax", "attention_out", "mlp_in", "mlp_hidden", "mlp_out")
# Products that a layer's norms, activations and softmax read: all else is elementwise on these and the layer's input. Nothing
# reads "mlp_out" but a norm behind the MLP; in a layer without one it is not saved.
FROZEN = ("projections", "attention_softmax", "attention_out", "mlp_in", "mlp_out")


class StackConfig:
    """Base class of configurations: what `run_layers` reads of one."""

    scan_layers: bool
    remat: str


def remat_policy(remat: str) -> Callable[..., Any] | None:
    """Returns which activations the forward pass saves for the backward pass, as `jax.checkpoint` takes it.

    Args:
      remat: "full" saves none, "frozen" saves the products that norms, activations and the softmax read (no product of a
        kernel is computed again; with frozen kernels nothing else is needed), "dots" saves products without a batch axis, and
        "save:attention_out,mlp_out" saves the named tensors.

    Raises:
      UserError: for any other value.
    """
    if remat == "full":
        return None
    if remat == "dots":
        return jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    if remat == "frozen":
        return jax.checkpoint_policies.save_only_these_names(*FROZEN)
    names = remat.removeprefix(SAVE).split(",")
    if not remat.startswith(SAVE) or not set(names) <= set(NAMED):
        raise UserError(
            f"REMAT is {remat!r}; it must be 'none', 'frozen', 'dots', 'full', or '{SAVE}' and some of {','.join(NAMED)}."
        )
    return jax.checkpoint_policies.save_only_these_names(*names)


def run_layers(
    layer_type: type[nn.Module],
    config: StackConfig,
    x: Any,
    per_layer: Any,
    *shared: Any,
    num_layers: int,
    deterministic: bool,
) -> tuple[Any, Any]:
    """Runs `num_layers` of `layer_type(config, deterministic)`. Call it inside a compact method.

    Args:
      layer_type: the layer's class.
      config: passed to each layer; its `scan_layers` and `remat` ("none", or see `remat_policy`) are read here.
      x: the carry: [B, length, D], or a pytree.
      per_layer: a pytree whose leaves have `num_layers` on axis 0, or None.
      *shared: arguments that every layer gets.
      num_layers: depth of the stack.
      deterministic: no dropout.

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
            in_axes=(0,) + (nn.broadcast,) * len(shared),  # pyright: ignore[reportArgumentType]  # one entry per argument
            out_axes=0,
            length=num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return stack(config, deterministic, name="layers")(x, per_layer, *shared)
    results = []
    for i in range(num_layers):
        layer_slice = jax.tree.map(lambda leaf, i=i: leaf[i], per_layer)
        x, result = layer_type(config, deterministic, name=f"layers_{i}")(x, layer_slice, *shared)
        results.append(result)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)
