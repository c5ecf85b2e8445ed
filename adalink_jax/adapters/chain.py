"""A chain of input adapters, applied one after the other.

    inputs = adapters[n](... adapters[1](adapters[0](inputs)))

AdaLink and a prompt are ADePT (Tang et al., 2025) without its biases: a bottleneck shared by all tokens, and a short prompt.
Position offsets and a prompt are DePT (Shi and Lipani, 2023).
"""

import flax.linen as nn
import gin

from adalink_jax.adapters.layer_adapter import LayerAdapter
from adalink_jax.adapters.packable import keeps_examples_apart
from adalink_jax.errors import UserError
from adalink_jax.models.seam import Inputs


@gin.configurable
class Chain(nn.Module):
    """Input adapters, `adapters[0]` first. Their parameters are under `adapters_0/...`, `adapters_1/...`.

    Raises:
      UserError: for a method that is not an input adapter.
    """

    adapters: tuple[nn.Module, ...]

    @property
    def identity_at_start(self) -> bool:
        """Whether all adapters start as the identity."""
        return all(getattr(adapter, "identity_at_start", False) for adapter in self.adapters)

    @property
    def per_segment(self) -> bool:
        """Whether all adapters keep packed examples apart."""
        return all(map(keeps_examples_apart, self.adapters))

    @nn.compact
    def __call__(self, inputs: Inputs) -> Inputs:
        """Passes the inputs through every adapter."""
        for adapter in self.adapters:
            if isinstance(adapter, LayerAdapter):
                raise UserError(f"Chain takes input adapters; {type(adapter).__name__} changes the backbone's layers.")
            inputs = adapter(inputs)
        return inputs
