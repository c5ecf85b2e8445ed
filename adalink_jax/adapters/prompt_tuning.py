"""Prompt tuning: trained vectors before the encoder's input (Lester et al., 2021, arXiv:2104.08691).

    inputs = [prompt ; image ; text]          prompt [P, D], broadcast to [B, P, D]

P * D parameters, and P more positions for the encoder and for every attention to it. No initial value makes a prompt the
identity. The parameters are float32; they enter the sequence in the embeddings' dtype.
"""

import flax.linen as nn
import gin
import jax.numpy as jnp
from jax.nn import initializers

from adalink_jax.errors import UserError
from adalink_jax.models.layers import param
from adalink_jax.models.seam import Inputs
from adalink_jax.typed_values import NonNegativeFloat, PositiveInt


@gin.configurable
class PromptTuning(nn.Module):
    """A prompt for the encoder, the same for every example.

    Attributes:
      length: P.
      init_scale: initial values are uniform in [-init_scale, init_scale] (Lester et al.: 0.5).

    Raises:
      UserError: for a length below 1.
    """

    length: PositiveInt = 100
    init_scale: NonNegativeFloat = 0.5

    def __post_init__(self):
        if not isinstance(self.length, int) or self.length < 1:
            raise UserError(f"PromptTuning.length is {self.length!r}; it must be at least 1.")
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: Inputs) -> Inputs:
        """Puts the prompt before one that is already there. A decoder's input passes unchanged."""
        embeddings = inputs.text if inputs.text is not None else inputs.image
        if embeddings is None:
            return inputs
        uniform = lambda key, shape, dtype: (
            initializers.uniform(2 * self.init_scale)(key, shape, dtype) - self.init_scale
        )
        prompt = param(
            self, "prompt", uniform, (self.length, embeddings.shape[-1]), ("adapter_length", "adapter_embed")
        )
        prompt = jnp.broadcast_to(prompt, (embeddings.shape[0], *prompt.shape)).astype(embeddings.dtype)
        mask = self.get_variable("padding", "prompt", jnp.ones(self.length, bool))  # False: padding to a bank's length
        mask = jnp.broadcast_to(mask, prompt.shape[:2])
        if inputs.prompt is not None and inputs.prompt_mask is not None:
            prompt = jnp.concatenate([prompt, inputs.prompt], axis=1)
            mask = jnp.concatenate([mask, inputs.prompt_mask], axis=1)
        return inputs.replace(prompt=prompt, prompt_mask=mask)
