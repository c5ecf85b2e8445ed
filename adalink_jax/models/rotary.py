"""Rotary positions: pairs of a head's numbers are turned by an angle that grows with the position (Su et al., 2021, arXiv:2104.09864).

The pairs are the first half of a head and the second, as in Gemma. Positions enter a score only by their difference.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from adalink_jax.models.structs import Struct


class Rotation(Struct):
    """The rotation of L positions, float32, or several stacked; called with queries or keys [B, H, L, K], which keep their dtype."""

    cos: Float[Array, "*kinds L half"]
    sin: Float[Array, "*kinds L half"]

    def __call__(self, x: Float[Array, "B H L K"]) -> Float[Array, "B H L K"]:
        """Rotates `x`."""
        first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        turned = (first * self.cos - second * self.sin, second * self.cos + first * self.sin)
        return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def rotation(positions: Int[Array, " L"], width: int, theta: float, factor: float = 1.0) -> Rotation:
    """The rotation of `positions / factor` for heads of `width` numbers, the slowest pair by almost 1 / theta each."""
    frequencies = theta ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width) / factor
    angles = positions[:, None].astype(jnp.float32) * frequencies
    return Rotation(jnp.cos(angles), jnp.sin(angles))
