"""AdaLink: a low-rank residual on the input embeddings (Non-Intrusive Adaptation, 2023, arXiv:2310.12100).

    y = x + scale * phi(x @ down) @ up          down [D, R], up [R, D]

`up` starts at zero, so a fresh AdaLink is the identity to the bit (-0.0 may become +0.0). Parameters and arithmetic
are float32 whatever x's dtype is, and so are the gradients that cross devices. 2 * D * R parameters a pair.
"""

from typing import ClassVar

import flax.linen as nn
import gin
import jax
import jax.numpy as jnp

from adalink_jax.errors import UserError
from adalink_jax.models.seam import ENCODER_KINDS, KINDS, Inputs

PHI = {"identity": lambda x: x, "relu": nn.relu, "gelu": nn.gelu, "silu": nn.silu}


class AdaLink(nn.Module):
    """One pair, for embeddings x [..., D]; use it in any Flax model between the embeddings and the first block.

    Attributes:
      rank: R.
      phi: "identity", "relu", "gelu" or "silu".
      scale: factor of the residual.

    Raises:
      UserError: for a rank below 1 or a phi that does not exist.
    """

    rank: int = 64
    phi: str = "identity"
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.rank < 1:
            raise UserError(f"AdaLink's rank is {self.rank}; it must be at least 1.")
        if self.phi not in PHI:
            raise UserError(f"AdaLink's phi is {self.phi!r}; it must be one of {', '.join(PHI)}.")
        width = x.shape[-1]
        down_init = nn.with_logical_partitioning(nn.initializers.normal(width**-0.5), ("adapter_embed", "adapter_rank"))
        up_init = nn.with_logical_partitioning(nn.initializers.zeros, ("adapter_rank", "adapter_embed"))
        down = self.param("down", down_init, (width, self.rank), jnp.float32)
        up = self.param("up", up_init, (self.rank, width), jnp.float32)
        exact = x.astype(jnp.float32)
        delta = jnp.dot(PHI[self.phi](jnp.dot(exact, down)), up)
        return (exact + self.scale * delta).astype(x.dtype)


@gin.configurable
class AdaLinkAdapter(nn.Module):
    """AdaLink as an input adapter: a pair for each kind of embedding, or one shared pair.

    Attributes:
      rank, phi, scale: as AdaLink's.
      kinds: which embeddings are adapted, of "image", "text" and "target" (the decoder's input, which the paper leaves
        alone). None: every kind that the backbone's encoder reads.
      share: one pair, named `shared`, for all kinds.

    Raises:
      UserError: for a kind that does not exist.
    """

    rank: int = 64
    phi: str = "identity"
    scale: float = 1.0
    kinds: tuple[str, ...] | None = None
    share: bool = False
    identity_at_start: ClassVar[bool] = True
    per_token: ClassVar[bool] = True  # maps each embedding alone, wherever it stands: `fold_text` takes it

    @property
    def linear(self) -> bool:
        """Whether it maps embeddings linearly, so that `fold_image` takes it."""
        return self.phi == "identity"

    @nn.compact
    def __call__(self, inputs: Inputs) -> Inputs:
        """Adapts the kinds that are present; shapes and dtypes stay."""
        unknown = [kind for kind in self.kinds or () if kind not in KINDS]
        if unknown or self.kinds == ():
            raise UserError(f"AdaLinkAdapter.kinds is {self.kinds!r}; it takes some of {KINDS}, or None.")
        pairs, adapted = {}, {}
        for kind in self.kinds or ENCODER_KINDS:
            x = getattr(inputs, kind)
            if x is None:
                continue
            name = "shared" if self.share else kind
            if name not in pairs:
                pairs[name] = AdaLink(self.rank, self.phi, self.scale, name=name)
            adapted[kind] = pairs[name](x)
        return inputs.replace(**adapted)
