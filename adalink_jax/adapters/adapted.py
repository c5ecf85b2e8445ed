"""A backbone and an input adapter, joined at the seam. Its parameters are `{"backbone": ..., "adapter": ...}`."""

import flax.linen as nn
import gin
import jax

from adalink_jax.errors import UserError
from adalink_jax.models import decoding
from adalink_jax.models.seam import ENCODER_KINDS, Encoded, Inputs


@gin.configurable
class AdaptedModel(nn.Module):
    """`backbone` with its input embeddings passed through `adapter`.

    Both sides of the adapter are fenced (`optimization_barrier`): the compiler may not fuse it into the backbone, whose
    program, and whose every bit, is therefore the same with any adapter or none.

    Attributes:
      backbone: T5 or PaLI.
      adapter: an input adapter, `Inputs -> Inputs`; None leaves the backbone as it is.
    """

    backbone: nn.Module
    adapter: nn.Module | None = None

    def adapt(self, inputs: Inputs) -> Inputs:
        """`inputs` through the adapter, inside the fence."""
        inputs = jax.lax.optimization_barrier(inputs)
        if self.adapter is not None:
            inputs = jax.lax.optimization_barrier(self.adapter(inputs))
        return inputs

    def encode(self, batch: dict, train: bool = False) -> Encoded:
        """Features (`encoder_input_tokens`, `images`) -> encoder states."""
        inputs = self.backbone.embed(batch, train)
        self._check_kinds(inputs)
        return self.backbone.encode(self.adapt(inputs), train)

    def decode(self, encoded: Encoded, tokens: jax.Array, cache=None, train: bool = False):
        """Decoder input ids [B, T] -> (logits float32 [B, T, V], cache)."""
        target = self.adapt(Inputs(target=self.backbone.embed_target(tokens))).target
        return self.backbone.decode(encoded, target, cache, train)

    def __call__(self, batch: dict, train: bool = False) -> jax.Array:
        """Teacher forcing: the batch's features and `decoder_input_tokens` [B, T] -> logits float32 [B, T, V]."""
        return self.decode(self.encode(batch, train), batch["decoder_input_tokens"], train=train)[0]

    def generate(self, batch: dict, max_length: int) -> jax.Array:
        """Greedy decoding with a cache -> ids int32 [B, max_length], padded after EOS."""
        encoded = self.encode(batch)
        size = encoded.mask.shape[0]
        cache = self.backbone.empty_cache(size, max_length)
        return decoding.greedy(lambda ids, cache: self.decode(encoded, ids, cache), cache, size, max_length)

    def _check_kinds(self, inputs: Inputs) -> None:
        wanted = getattr(self.adapter, "kinds", None)
        if self.is_initializing() and wanted:
            missing = [kind for kind in wanted if kind in ENCODER_KINDS and getattr(inputs, kind) is None]
            if missing:
                raise UserError(
                    f"{type(self.adapter).__name__}.kinds asks for {missing[0]!r}, but {type(self.backbone).__name__} "
                    f"has no such input."
                )
