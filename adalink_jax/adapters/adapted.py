"""A backbone and an adapter, joined in one model with the parameters `{"backbone": ..., "adapter": ...}`.

    encode:  inputs = adapter(backbone.embed(batch));  backbone.encode(inputs)
    decode:  target = adapter(backbone.embed_target(tokens));  backbone.decode(encoded, target, cache)

Layer adapters do not pass the seam; they supply the backbone's variables and intercept its layer calls.
"""

from typing import Any, cast

import flax.linen as nn
import gin
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from adalink_jax.adapters.adapted_kinds import kinds_of
from adalink_jax.adapters.layer_adapter import LayerAdapter
from adalink_jax.adapters.packable import check_packable
from adalink_jax.errors import UserError
from adalink_jax.models.backbone import Backbone, Batch
from adalink_jax.models.decoding import Decoded, Decoding, Sampling
from adalink_jax.models.seam import ENCODER_KINDS, Cache, Encoded, Inputs


@gin.configurable
class AdaptedModel(nn.Module):
    """A backbone whose input embeddings pass through an adapter, or whose layers have one.

    Both sides of an input adapter are fenced (`optimization_barrier`), so the compiler cannot fuse it into the backbone. The
    backbone's program, and every bit of its results, is therefore the same with any adapter or none.

    Attributes:
      backbone: the frozen model.
      adapter: an input adapter, `Inputs -> Inputs`, or a `LayerAdapter`; None runs the plain backbone.
    """

    backbone: Backbone
    adapter: nn.Module | None = None

    def adapt(self, inputs: Inputs) -> Inputs:
        """Passes `inputs` through the input adapter, inside the fence."""
        inputs = jax.lax.optimization_barrier(inputs)
        if self.adapter is not None and not isinstance(self.adapter, LayerAdapter):
            inputs = jax.lax.optimization_barrier(self.adapter(inputs))
        return inputs

    def encode(self, batch: Batch, train: bool = False) -> Encoded:
        """Encodes the batch's features: `encoder_input_tokens`, `images`; for a bank also `adapter_index`.

        Raises:
          UserError: for an `adapter_index` without a bank, and for packed examples that the adapter would mix.
        """
        index = batch.get("adapter_index")
        if "encoder_segment_ids" in batch:
            check_packable(self.backbone, self.adapter)
        if index is not None and not getattr(self.adapter, "by_index", False):
            raise UserError(
                f"The batch has `adapter_index`, but {type(self.adapter).__name__} is not a bank of adapters."
            )
        inputs = self._run("embed", batch, train, index=index)
        wanted = kinds_of(self.adapter)
        missing = [kind for kind in wanted if kind in ENCODER_KINDS and getattr(inputs, kind) is None]
        if missing and self.is_initializing():
            raise UserError(
                f"{type(self.adapter).__name__}.kinds asks for {missing[0]!r}, but {type(self.backbone).__name__} has no "
                f"such input."
            )
        encoded = self._run("encode", self.adapt(inputs.replace(adapter_index=index)), train, index=index)
        return encoded.replace(adapter_index=index)

    def decode_states(
        self,
        encoded: Encoded,
        tokens: Int[Array | np.ndarray, "B T"],
        cache: Cache | None = None,
        train: bool = False,
        segments: Int[Array | np.ndarray, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """Decodes input ids up to the head; `segments`: see `Backbone.decode_states`. Returns states, and the cache after this step."""
        index = encoded.adapter_index
        target = Inputs(target=self._run("embed_target", tokens, index=index), adapter_index=index)
        packed = () if segments is None else (segments,)
        return self._run("decode_states", encoded, self.adapt(target).target, cache, train, *packed, index=index)

    def logits(
        self, states: Float[Array, "B T D"], adapter_index: Int[Array | np.ndarray, " B"] | None = None
    ) -> Float[Array, "B T V"]:
        """Computes float32 logits from decoder states; `adapter_index` is a bank's."""
        return self._run("logits", states, index=adapter_index)

    def decode(
        self,
        encoded: Encoded,
        tokens: Int[Array | np.ndarray, "B T"],
        cache: Cache | None = None,
        train: bool = False,
        segments: Int[Array | np.ndarray, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T V"], Cache | None]:
        """`decode_states` and `logits`: float32 logits, and the cache after this step."""
        states, cache = self.decode_states(encoded, tokens, cache, train, segments)
        return self.logits(states, encoded.adapter_index), cache

    def states(self, batch: Batch, train: bool = False) -> Float[Array, "B T D"]:
        """Runs the model up to the head, with teacher forcing; see `__call__`."""
        encoded, segments = self.encode(batch, train), batch.get("decoder_segment_ids")
        return self.decode_states(encoded, batch["decoder_input_tokens"], train=train, segments=segments)[0]

    def __call__(self, batch: Batch, train: bool = False) -> Float[Array, "B T V"]:
        """Runs the model with teacher forcing on the batch's features and `decoder_input_tokens`; float32 logits."""
        logits = self.logits(self.states(batch, train), batch.get("adapter_index"))
        if self.is_initializing() and isinstance(self.adapter, LayerAdapter):
            self.adapter(nn.meta.unbox(dict(self.backbone.variables["params"])))  # declares its parameters
        return logits

    def generate(
        self,
        batch: Batch,
        max_length: int,
        decoding: Decoding = Sampling(),  # noqa: B008  # frozen
        keys: Array | None = None,
    ) -> Decoded:
        """Decodes with a cache; `Sampling()` is greedy.

        Args:
          batch: features of the encoder.
          max_length: T, the most tokens of an output, with its EOS.
          decoding: `Sampling` or `BeamSearch`.
          keys: for a decoding that draws, one random key for each row [B]: `jax.random.split(key, B)`.

        Returns:
          ids int32 [B, N, T], padded after their end, and scores [B, N]; the best first.
        """
        encoded = self.encode(batch)
        size = encoded.mask.shape[0]

        def step(ids, cache):
            index = encoded.adapter_index
            index = None if index is None else jnp.repeat(index, ids.shape[0] // size)
            return cast(tuple[Array, Cache], self.decode(encoded.replace(adapter_index=index), ids, cache))

        cache = self.backbone.empty_cache(size, max_length)
        return decoding(step, cache, size, max_length, keys, self.backbone.token_ids)

    def score(self, batch: Batch) -> Float[Array, " B"]:
        """Returns the log-likelihoods of `decoder_target_tokens`, weighted per token by `decoder_loss_weights`."""
        log_p = jax.nn.log_softmax(self(batch))
        targets = batch["decoder_target_tokens"][..., None]
        return jnp.sum(jnp.take_along_axis(log_p, targets, axis=-1)[..., 0] * batch["decoder_loss_weights"], axis=-1)

    def _run(self, method: str, *args: Any, index: Array | np.ndarray | None) -> Any:
        """Calls a method of the backbone; a `LayerAdapter` supplies other variables and intercepts the layers' calls."""
        if not isinstance(self.adapter, LayerAdapter) or self.is_initializing():
            return getattr(self.backbone, method)(*args)
        backbone, variables = self.backbone.unbind()
        changed = self.adapter(variables["params"], *(() if index is None else (index,)))
        rngs = {"dropout": self.make_rng("dropout")} if self.has_rng("dropout") else {}
        with nn.intercept_methods(self.adapter.intercept):
            return backbone.apply({**variables, **changed}, *args, method=method, rngs=rngs)


def fresh_params(model: AdaptedModel, seed: int | Array) -> dict[str, Any]:
    """Draws random parameters; leaves are `nn.LogicallyPartitioned`, and `seed` may be traced."""
    batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), model.backbone.abstract_batch(1, 1, 1))
    return dict(model.init(jax.random.key(seed), batch)["params"])


def abstract_params(model: AdaptedModel) -> dict[str, Any]:
    """Returns the parameters' shapes and logical axes (`nn.LogicallyPartitioned` leaves), without allocating any."""
    return jax.eval_shape(lambda: fresh_params(model, 0))
