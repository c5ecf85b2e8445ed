"""Prompt tuning: trained vectors before the encoder's input (Lester et al., 2021, arXiv:2104.08691).

    inputs = [prompt ; image ; text]          prompt [P, D]

P * D parameters, and P more positions for the encoder and for every attention to it. There is no start at which a prompt
changes nothing. The parameters are float32 and enter in the embeddings' dtype.
"""

import flax.linen as nn
import gin
import jax.numpy as jnp
from jax.nn import initializers

from adalink_jax.errors import UserError
from adalink_jax.models.seam import Inputs


@gin.configurable
class PromptTuning(nn.Module):
    """A prompt for the encoder, the same for every example.

    Attributes:
      length: P.
      init_scale: the start is uniform in [-init_scale, init_scale] (Lester et al.: 0.5).

    Raises:
      UserError: for a length below 1.
    """

    length: int = 100
    init_scale: float = 0.5

    @nn.compact
    def __call__(self, inputs: Inputs) -> Inputs:
        """Puts the prompt [B, P, D] before a prompt that is there already; a decoder's input passes as it is."""
        if self.length < 1:
            raise UserError(f"PromptTuning.length is {self.length}; it must be at least 1.")
        like = inputs.text if inputs.text is not None else inputs.image
        if like is None:
            return inputs
        uniform = lambda key, shape, dtype: (
            initializers.uniform(2 * self.init_scale)(key, shape, dtype) - self.init_scale
        )
        init = nn.with_logical_partitioning(uniform, ("adapter_length", "adapter_embed"))
        prompt = self.param("prompt", init, (self.length, like.shape[-1]), jnp.float32)
        prompt = jnp.broadcast_to(prompt, (like.shape[0], *prompt.shape)).astype(like.dtype)
        own = self.get_variable(
            "padding", "prompt", jnp.ones(self.length, bool)
        )  # False: of a longer prompt of its bank
        mask = jnp.broadcast_to(own, prompt.shape[:2])
        if inputs.prompt is not None:
            prompt = jnp.concatenate([prompt, inputs.prompt], axis=1)
            mask = jnp.concatenate([mask, inputs.prompt_mask], axis=1)
        return inputs.replace(prompt=prompt, prompt_mask=mask)
