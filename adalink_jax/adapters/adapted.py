"""A backbone and an adapter, joined. Its parameters are `{"backbone": ..., "adapter": ...}`."""

import flax.linen as nn
import gin
import jax
import jax.numpy as jnp

from adalink_jax.adapters.layer_adapter import LayerAdapter
from adalink_jax.errors import UserError
from adalink_jax.models.decoding import Decoded, Decoding, Sampling
from adalink_jax.models.seam import ENCODER_KINDS, Encoded, Inputs


@gin.configurable
class AdaptedModel(nn.Module):
    """`backbone` with its input embeddings passed through `adapter`, or with `adapter` in its layers.

    Both sides of an input adapter are fenced (`optimization_barrier`): the compiler may not fuse it into the backbone, whose
    program, and whose every bit, is therefore the same with any adapter or none.

    Attributes:
      backbone: T5 or PaLI.
      adapter: an input adapter, `Inputs -> Inputs`; or a `LayerAdapter`; None leaves the backbone as it is.
    """

    backbone: nn.Module
    adapter: nn.Module | None = None

    def adapt(self, inputs: Inputs) -> Inputs:
        """`inputs` through the input adapter, inside the fence."""
        inputs = jax.lax.optimization_barrier(inputs)
        if self.adapter is not None and not isinstance(self.adapter, LayerAdapter):
            inputs = jax.lax.optimization_barrier(self.adapter(inputs))
        return inputs

    def encode(self, batch: dict, train: bool = False) -> Encoded:
        """Features (`encoder_input_tokens`, `images`; for a bank `adapter_index`) -> encoder states."""
        index = batch.get("adapter_index")
        if index is not None and not self._by_index:
            raise UserError(f"The batch has `adapter_index`, but {type(self.adapter).__name__} is no bank of adapters.")
        inputs = self._run("embed", batch, train, index=index)
        self._check_kinds(inputs)
        encoded = self._run("encode", self.adapt(inputs.replace(adapter_index=index)), train, index=index)
        return encoded.replace(adapter_index=index)

    def decode(self, encoded: Encoded, tokens: jax.Array, cache=None, train: bool = False):
        """Decoder input ids [B, T] -> (logits float32 [B, T, V], cache)."""
        index = encoded.adapter_index
        target = Inputs(target=self._run("embed_target", tokens, index=index), adapter_index=index)
        return self._run("decode", encoded, self.adapt(target).target, cache, train, index=index)

    def __call__(self, batch: dict, train: bool = False) -> jax.Array:
        """Teacher forcing: the batch's features and `decoder_input_tokens` [B, T] -> logits float32 [B, T, V]."""
        logits = self.decode(self.encode(batch, train), batch["decoder_input_tokens"], train=train)[0]
        if self.is_initializing() and isinstance(self.adapter, LayerAdapter):
            self.adapter(nn.meta.unbox(self.backbone.variables["params"]))  # makes its leaves
        return logits

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
            rows = lambda x: None if x is None else jnp.repeat(x, ids.shape[0] // size, axis=0)
            mine = encoded.replace(mask=rows(encoded.mask), adapter_index=rows(encoded.adapter_index))
            return self.decode(mine, ids, cache)

        return decoding(step, self.backbone.empty_cache(size, max_length), size, max_length, key)

    def score(self, batch: dict) -> jax.Array:
        """Log-likelihoods of `decoder_target_tokens`, each weighted by its `decoder_loss_weights`: float32 [B]."""
        log_p = jax.nn.log_softmax(self(batch))
        targets = batch["decoder_target_tokens"][..., None]
        return jnp.sum(jnp.take_along_axis(log_p, targets, axis=-1)[..., 0] * batch["decoder_loss_weights"], axis=-1)

    def _run(self, method: str, *args, index):
        """One of the backbone's methods. A `LayerAdapter` gives it other variables and stands around its layers' calls."""
        if not isinstance(self.adapter, LayerAdapter) or self.is_initializing():
            return getattr(self.backbone, method)(*args)
        backbone, variables = self.backbone.unbind()
        changed = self.adapter(variables["params"], *((index,) if self._by_index else ()))
        rngs = {"dropout": self.make_rng("dropout")} if self.has_rng("dropout") else {}
        with nn.intercept_methods(self.adapter.intercept):
            return backbone.apply({**variables, **changed}, *args, method=method, rngs=rngs)

    @property
    def _by_index(self) -> bool:
        return getattr(self.adapter, "by_index", False)

    def _check_kinds(self, inputs: Inputs) -> None:
        wanted = getattr(self.adapter, "kinds", None)
        if self.is_initializing() and wanted:
            missing = [kind for kind in wanted if kind in ENCODER_KINDS and getattr(inputs, kind) is None]
            if missing:
                raise UserError(
                    f"{type(self.adapter).__name__}.kinds asks for {missing[0]!r}, but {type(self.backbone).__name__} "
                    f"has no such input."
                )


def fresh_params(model: AdaptedModel, seed):
    """Random parameters, `nn.LogicallyPartitioned` leaves; `seed` may be traced."""
    batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), model.backbone.abstract_batch(1, 1, 1))
    return model.init(jax.random.key(seed), batch)["params"]


def abstract_params(model: AdaptedModel):
    """The parameters' shapes and logical axes (`nn.LogicallyPartitioned` leaves); nothing is allocated."""
    return jax.eval_shape(lambda: fresh_params(model, 0))
