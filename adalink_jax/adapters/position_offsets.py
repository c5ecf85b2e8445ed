"""Position offsets: low-rank offsets to the text embeddings, by position (DePT; Shi and Lipani, 2023, arXiv:2309.05173).

    y[l] = x[l] + (down @ up)[l]          x, y [L, D], down [length, R], up [R, D]

(length + D) * R parameters. `up` starts at zero, so fresh offsets are the identity. In a `Chain` with a short prompt they
are DePT. Positions are counted from the start of each example of a packed row.
"""

from typing import ClassVar

import flax.linen as nn
import gin
import jax.numpy as jnp

from adalink_jax.errors import UserError
from adalink_jax.models.layers import param
from adalink_jax.models.seam import Inputs
from adalink_jax.typed_values import PositiveInt


@gin.configurable
class PositionOffsets(nn.Module):
    """Offsets to the text's embeddings.

    Attributes:
      length: number of positions with an offset; no text may be longer.
      rank: R.

    Raises:
      UserError: for sizes below 1, or a text longer than `length`.
    """

    length: PositiveInt = 256
    rank: PositiveInt = 8
    identity_at_start: ClassVar[bool] = True
    per_segment: ClassVar[bool] = True

    def __post_init__(self):
        if any(not isinstance(n, int) or n < 1 for n in (self.length, self.rank)):
            raise UserError(
                f"PositionOffsets has length {self.length!r} and rank {self.rank!r}; both must be at least 1."
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: Inputs) -> Inputs:
        """Adds the offsets to `text`. Other kinds pass unchanged."""
        if inputs.text is None:
            return inputs
        size, width = inputs.text.shape[1:]
        if size > self.length:
            raise UserError(f"A text has {size} positions and PositionOffsets.length is {self.length}; raise it.")
        init = nn.initializers.normal(self.rank**-0.5)
        down = param(self, "down", init, (self.length, self.rank), ("adapter_position", "adapter_rank"))
        up = param(self, "up", nn.initializers.zeros, (self.rank, width), ("adapter_rank", "adapter_embed"))
        offsets = down[:size] @ up
        if inputs.text_positions is not None:
            offsets = jnp.take(offsets, inputs.text_positions, axis=0)
        text = inputs.text.astype(jnp.float32) + offsets
        return inputs.replace(text=text.astype(inputs.text.dtype))
