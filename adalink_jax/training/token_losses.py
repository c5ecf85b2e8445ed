"""Losses of tokens, computed from the decoder's states a few positions at a time.

Invariant: where the head is frozen, the logits of all positions are never in memory. A token's loss depends on its own state
only, so the forward pass computes the gradient with respect to the states along with the losses, chunk after chunk, and the
backward pass multiplies it by the losses' cotangents. Nothing is computed twice. The gradient of a head that is trained
(full fine-tuning, LoRA on the head) is JAX's own, and what it needs of the logits is kept.

Letters: B batch, T positions, D model width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from adalink_jax import parallel

CHUNK = 2**25  # logits on a device that are computed together: 128 MB
Head = Callable[[Float[jax.Array, "B t D"]], Float[jax.Array, "B t V"]]
Loss = Callable[[Float[jax.Array, "B t V"], Int[jax.Array, "B t"]], Float[jax.Array, "B t"]]


def token_losses(
    loss: Loss, head: Head, states: Float[jax.Array, "B T D"], targets: Int[jax.Array | np.ndarray, "B T"]
) -> Float[jax.Array, "B T"]:
    """`loss(head(states), targets)`, differentiable with respect to `states` and to whatever `head` closes over.

    The chunks are of positions, so any sharding of the batch and of the vocabulary stays as it is.

    Args:
      loss: each token's loss from its logits and its target.
      head: the logits from the states, position by position.
      states: the decoder's.
      targets: ids.

    Returns:
      float32 losses.
    """
    rows, positions, _ = states.shape
    logits = jax.eval_shape(head, states)
    number = -(-parallel.elements_per_device(logits, "batch", "length", "vocab") // CHUNK)
    length = -(-positions // number)
    # Closed-over parameters become arguments, so that JAX says which of them are trained.
    head, parameters = jax.closure_convert(head, jax.ShapeDtypeStruct((rows, length, states.shape[2]), states.dtype))
    part = lambda states, targets, parameters: loss(head(states, *parameters), targets)
    return _losses(_Chunks(part, length), states, jnp.asarray(targets), parameters)


class _Chunks(NamedTuple):
    """How the positions are computed.

    Attributes:
      part: `(states, targets, parameters) -> losses` of a chunk.
      length: positions of a chunk.
    """

    part: Callable[[jax.Array, jax.Array, Sequence[jax.Array]], jax.Array]
    length: int

    def map(self, function: Callable, *arrays: jax.Array) -> Any:
        """Maps a function over the chunks of arrays [B, T, ...]; the results are cut and joined likewise."""
        positions = arrays[0].shape[1]
        number = -(-positions // self.length)

        def cut(x: jax.Array) -> jax.Array:
            x = jnp.pad(x, [(0, 0), (0, number * self.length - positions), *[(0, 0)] * (x.ndim - 2)])
            return x.reshape(x.shape[0], number, self.length, *x.shape[2:]).swapaxes(0, 1)

        def joined(x: jax.Array) -> jax.Array:
            x = x.swapaxes(0, 1)
            return x.reshape(x.shape[0], number * self.length, *x.shape[3:])[:, :positions]

        results = jax.lax.scan(lambda _, chunk: (None, function(*chunk)), None, tuple(map(cut, arrays)))[1]
        return jax.tree.map(joined, results)


def _in_chunks(chunks: _Chunks, states: jax.Array, targets: jax.Array, parameters: Sequence[jax.Array]) -> jax.Array:
    return chunks.map(lambda states, targets: chunks.part(states, targets, parameters), states, targets)


_losses = jax.custom_vjp(_in_chunks, nondiff_argnums=(0,))


def _forward(chunks: _Chunks, *arguments: Any) -> tuple[jax.Array, Any]:
    is_primal = lambda x: isinstance(x, jax.custom_derivatives.CustomVJPPrimal)
    states, targets, parameters = jax.tree.map(lambda x: x.value, arguments, is_leaf=is_primal)
    if any(parameter.perturbed for parameter in arguments[2]):
        of = lambda states, parameters: _in_chunks(chunks, states, targets, parameters)
        return jax.vjp(of, states, parameters)

    def with_gradient(states: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        losses, gradient = jax.vjp(lambda states: chunks.part(states, targets, parameters), states)
        return losses, gradient(jnp.ones_like(losses))[0]

    return chunks.map(with_gradient, states, targets)


def _backward(chunks: _Chunks, saved: Any, cotangent: Any) -> tuple[jax.Array, None, Any]:
    if isinstance(saved, jax.Array):
        return (saved * cotangent[..., None]).astype(saved.dtype), None, None
    d_states, d_parameters = saved(cotangent)
    return d_states, None, d_parameters


_losses.defvjp(_forward, _backward, symbolic_zeros=True)
