"""AdaLink: a trained low-rank residual on the input embeddings ("Non-Intrusive Adaptation", 2023, arXiv:2310.12100).

    y = x + scale * phi(x @ down) @ up          x, y [..., D], down [D, R], up [R, D]

One pair (`down`, `up`) per modality, or one shared pair, 2 * D * R parameters each: with D = 4096, R = 64 and two modalities
1,048,576, the paper's "1.05M". `down` starts normal with variance 1/D and `up` at zero, so a fresh AdaLink is the identity to
the bit (-0.0 may become +0.0). Parameters, arithmetic and gradients are float32, whatever the dtype of x.
"""

import functools
from typing import ClassVar

import flax.linen as nn
import gin
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from adalink_jax.errors import UserError
from adalink_jax.models.layers import param
from adalink_jax.models.seam import ENCODER_KINDS, KINDS, Inputs
from adalink_jax.typed_values import FiniteFloat, PositiveInt

PHI = {"identity": lambda x: x, "relu": nn.relu, "gelu": nn.gelu, "silu": nn.silu}


def _check(rank: int, phi: str) -> None:
    if not isinstance(rank, int) or rank < 1:
        raise UserError(f"AdaLink's rank is {rank!r}; it must be at least 1.")
    if phi not in PHI:
        raise UserError(f"AdaLink's phi is {phi!r}; it must be one of {', '.join(PHI)}.")


class AdaLink(nn.Module):
    """One pair of matrices. Use it in any Flax model, between the embeddings and the first block.

    Attributes:
      rank: R.
      phi: "identity", "relu", "gelu" or "silu".
      scale: factor of the residual.

    Raises:
      UserError: for a rank below 1 or an unknown phi.
    """

    rank: int = 64
    phi: str = "identity"
    scale: float = 1.0

    def __post_init__(self):
        _check(self.rank, self.phi)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        width = x.shape[-1]
        axes = ("adapter_embed", "adapter_rank")
        down = param(self, "down", nn.initializers.normal(width**-0.5), (width, self.rank), axes)
        up = param(self, "up", nn.initializers.zeros, (self.rank, width), axes[::-1])
        exact = x.astype(jnp.float32)
        delta = jnp.dot(PHI[self.phi](jnp.dot(exact, down)), up)
        return (exact + self.scale * delta).astype(x.dtype)


@gin.configurable
class AdaLinkAdapter(nn.Module):
    """AdaLink as an input adapter: one pair per kind of embedding, or one shared pair.

    Attributes:
      rank, phi, scale: as in `AdaLink`.
      kinds: the embeddings to adapt, out of "image", "text" and "target" (the decoder's input, which the paper does not
        adapt). None adapts every kind that the backbone's encoder reads.
      share: use one pair, named `shared`, for all kinds.

    Raises:
      UserError: for an unknown kind.
    """

    rank: PositiveInt = 64
    phi: str = "identity"
    scale: FiniteFloat = 1.0
    kinds: tuple[str, ...] | None = None
    share: bool = False
    identity_at_start: ClassVar[bool] = True
    per_token: ClassVar[bool] = True  # maps each embedding by itself, so `fold_text` can fold it

    def __post_init__(self):
        _check(self.rank, self.phi)
        if self.kinds is not None and (not self.kinds or set(self.kinds) - set(KINDS)):
            raise UserError(f"AdaLinkAdapter.kinds is {self.kinds!r}; it takes some of {KINDS}, or None.")
        super().__post_init__()

    @property
    def linear(self) -> bool:
        """Whether it maps embeddings linearly, so that `fold_image` can fold it."""
        return self.phi == "identity"

    @nn.compact
    def __call__(self, inputs: Inputs) -> Inputs:
        """Adapts the kinds that are present. Shapes and dtypes stay the same."""
        pair = functools.cache(lambda name: AdaLink(self.rank, self.phi, self.scale, name=name))
        present = {kind: x for kind in self.kinds or ENCODER_KINDS if (x := getattr(inputs, kind)) is not None}
        adapted = {kind: pair("shared" if self.share else kind)(x) for kind, x in present.items()}
        return inputs.replace(**adapted)
