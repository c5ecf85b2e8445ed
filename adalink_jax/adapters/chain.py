"""Input adapters one after the other."""

import flax.linen as nn
import gin

from adalink_jax.adapters.layer_adapter import LayerAdapter
from adalink_jax.errors import UserError
from adalink_jax.models.seam import Inputs


@gin.configurable
class Chain(nn.Module):
    """`adapters[0]` first. Leaves are called `adapters_0/...`, `adapters_1/...`.

    AdaLink and a prompt together are ADePT (Tang et al., 2025) without its biases: a bottleneck that all tokens share, and a
    short prompt; position offsets and a prompt are DePT (Shi and Lipani, 2023).

    Raises:
      UserError: for a method that is no input adapter.
    """

    adapters: tuple[nn.Module, ...]

    @property
    def identity_at_start(self) -> bool:
        """Whether all of its parts are."""
        return all(getattr(adapter, "identity_at_start", False) for adapter in self.adapters)

    @nn.compact
    def __call__(self, inputs: Inputs) -> Inputs:
        """Each gets what the one before it gave."""
        for adapter in self.adapters:
            if isinstance(adapter, LayerAdapter):
                raise UserError(f"Chain takes input adapters; {type(adapter).__name__} changes the backbone's layers.")
            inputs = adapter(inputs)
        return inputs
