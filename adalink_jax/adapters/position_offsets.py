"""Low-rank offsets to the text embeddings by position: the second half of DePT (Shi and Lipani, 2023, arXiv:2309.05173).

    y[l] = x[l] + (down @ up)[l]          down [length, R], up [R, D]

`up` starts at zero, so fresh offsets are the identity. (length + D) * R parameters. With a short prompt behind it in a
`Chain` this is DePT.
"""

from typing import ClassVar

import flax.linen as nn
import gin
import jax.numpy as jnp

from adalink_jax.errors import UserError
from adalink_jax.models.seam import Inputs


@gin.configurable
class PositionOffsets(nn.Module):
    """Offsets to the text's embeddings.

    Attributes:
      length: positions that have an offset: the longest text.
      rank: R.

    Raises:
      UserError: for sizes below 1, and a text longer than `length`.
    """

    length: int = 256
    rank: int = 8
    identity_at_start: ClassVar[bool] = True

    @nn.compact
    def __call__(self, inputs: Inputs) -> Inputs:
        """Adds the offsets to `text`; other kinds pass as they are."""
        if self.length < 1 or self.rank < 1:
            raise UserError(f"PositionOffsets has length {self.length} and rank {self.rank}; both must be at least 1.")
        if inputs.text is None:
            return inputs
        size, width = inputs.text.shape[1:]
        if size > self.length:
            raise UserError(f"A text has {size} positions and PositionOffsets.length is {self.length}; raise it.")
        down_init = nn.with_logical_partitioning(
            nn.initializers.normal(self.rank**-0.5), ("adapter_position", "adapter_rank")
        )
        up_init = nn.with_logical_partitioning(nn.initializers.zeros, ("adapter_rank", "adapter_embed"))
        down = self.param("down", down_init, (self.length, self.rank), jnp.float32)
        up = self.param("up", up_init, (self.rank, width), jnp.float32)
        text = inputs.text.astype(jnp.float32) + down[:size] @ up
        return inputs.replace(text=text.astype(inputs.text.dtype))
