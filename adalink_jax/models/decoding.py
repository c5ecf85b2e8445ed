"""Greedy decoding with a key/value cache. Knows no model: it is given one step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

BOS, EOS, PAD = 0, 1, 0  # T5 starts the decoder with the padding id


def greedy(step: Callable, cache, batch_size: int, max_length: int) -> jax.Array:
    """Decodes until every row has ended or `max_length` tokens are out.

    Args:
      step: `(tokens [B, 1], cache) -> (logits [B, 1, V], cache)`. The cache's structure may change at the first call
        only (it fills the cross-attention's keys and values then).
      cache: the empty cache, of at least `max_length` positions.

    Returns:
      int32 [B, max_length]: tokens up to and including EOS, then PAD.
    """

    def advance(tokens, ended, cache):
        logits, cache = step(tokens, cache)
        new = jnp.where(ended, PAD, jnp.argmax(logits[:, -1], axis=-1).astype(jnp.int32))
        return new, ended | (new == EOS), cache

    def body(state):
        i, out, last, ended, cache = state
        new, ended, cache = advance(last[:, None], ended, cache)
        return i + 1, out.at[:, i].set(new), new, ended, cache

    start = jnp.full((batch_size, 1), BOS, jnp.int32)
    new, ended, cache = advance(start, jnp.zeros(batch_size, bool), cache)
    out = jnp.full((batch_size, max_length), PAD, jnp.int32).at[:, 0].set(new)
    keep_going = lambda state: (state[0] < max_length) & ~jnp.all(state[3])
    return jax.lax.while_loop(keep_going, body, (jnp.int32(1), out, new, ended, cache))[1]
