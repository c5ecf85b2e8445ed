"""T5's relative positions: a bias of attention's scores, by the distance of key and query (Raffel et al., 2020, section 2.1)."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from adalink_jax.models.layers import param


class RelativePositionBias(nn.Module):
    """T5's relative position bias, a table [H, buckets]."""

    num_heads: int
    bidirectional: bool
    num_buckets: int
    max_distance: int

    @nn.compact
    def __call__(self, distances: Int[Array, " distances"]) -> Float[Array, "H distances"]:
        """The bias of each distance, key position - query position."""
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        table = param(self, "rel_embedding", init, (self.num_heads, self.num_buckets), ("heads", "relpos_buckets"))
        buckets = relative_position_bucket(distances, self.bidirectional, self.num_buckets, self.max_distance)
        return jnp.take(table.astype(jnp.float32), buckets, axis=1)


def relative_position_bucket(
    distance: Int[Array, "..."], bidirectional: bool, num_buckets: int, max_distance: int
) -> Int[Array, "..."]:
    """Buckets distances (key position - query position): exact for short ones, logarithmic up to `max_distance`.

    Bidirectional attention spends half of the buckets on either sign. Causal attention puts all later keys in bucket 0.
    """
    offset = 0
    if bidirectional:
        num_buckets //= 2
        offset = jnp.where(distance > 0, num_buckets, 0)
        distance = jnp.abs(distance)
    else:
        distance = jnp.maximum(-distance, 0)
    exact = num_buckets // 2
    # float32 arithmetic on at least 1, as in the reference, puts the borders of the buckets at the same distances.
    ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / jnp.log(max_distance / exact)
    far = jnp.minimum(exact + (ratio * (num_buckets - exact)).astype(jnp.int32), num_buckets - 1)
    return offset + jnp.where(distance < exact, distance, far)
