"""A backbone and an input adapter, joined at the seam. Its parameters are `{"backbone": ..., "adapter": ...}`."""

import flax.linen as nn
import gin
import jax
import jax.numpy as jnp

from adalink_jax.errors import UserError
from adalink_jax.models.decoding import Decoded, Decoding, Sampling
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

    def generate(self, batch: dict, max_length: int, decoding: Decoding = Sampling(), key=None) -> Decoded:  # noqa: B008
        """Decoding with a cache; `Sampling()` is greedy.

        Args:
          batch: features of the encoder.
          max_length: T, tokens of an output at most, with its EOS.
          decoding: `Sampling` or `BeamSearch`.
          key: random key, where the decoding draws.

        Returns:
          ids int32 [B, N, T], padded after their end, and scores [B, N]; the best first.
        """
        encoded = self.encode(batch)
        size = encoded.mask.shape[0]

        def step(ids, cache):
            mask = jnp.repeat(encoded.mask, ids.shape[0] // size, axis=0)
            return self.decode(encoded.replace(mask=mask), ids, cache)

        return decoding(step, self.backbone.empty_cache(size, max_length), size, max_length, key)

    def score(self, batch: dict) -> jax.Array:
        """Log-likelihoods of `decoder_target_tokens`, each weighted by its `decoder_loss_weights`: float32 [B]."""
        log_p = jax.nn.log_softmax(self(batch))
        targets = batch["decoder_target_tokens"][..., None]
        return jnp.sum(jnp.take_along_axis(log_p, targets, axis=-1)[..., 0] * batch["decoder_loss_weights"], axis=-1)

    def _check_kinds(self, inputs: Inputs) -> None:
        wanted = getattr(self.adapter, "kinds", None)
        if self.is_initializing() and wanted:
            missing = [kind for kind in wanted if kind in ENCODER_KINDS and getattr(inputs, kind) is None]
            if missing:
                raise UserError(
                    f"{type(self.adapter).__name__}.kinds asks for {missing[0]!r}, but {type(self.backbone).__name__} "
                    f"has no such input."
                )
