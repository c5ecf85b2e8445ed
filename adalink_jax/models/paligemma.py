"""PaliGemma 1 and 2: one stack of Gemma's blocks that reads [visual tokens ; text] and continues it (Beyer et al., 2024,
arXiv:2407.07726; Steiner et al., 2024, arXiv:2412.03555).

    x = x + attention(norm(x));              x = x + mlp(norm(x))                  Gemma 1
    x = x + norm(attention(norm(x)));        x = x + norm(mlp(norm(x)))            Gemma 2: `post_norms`

It is a prefix-LM: the tokens of the prefix (what t5x's features call the encoder's input) all see each other, those of the suffix (the
decoder's) see the prefix and what precedes them. As the prefix never sees the suffix, `encode` runs the stack on the prefix alone, and
`decode_states` runs it on the suffix, whose layers attend to the prefix's keys and values in the same softmax.

The first target is predicted from the last token of the prefix. So this token is also the first of the suffix: there its keys,
values and final state are those that `encode` computed, and the decoder's first input, the start id, has no effect.

`encode` moves the tokens of each row to its right end. Positions are then counted along the row, and differ from those of the
references by one number per row, of which rotations and windows are independent.

One table embeds prefix and suffix, and is the head. Text enters the seam already multiplied by sqrt(D); visual tokens are not
multiplied. In the windowed layers of `transformers` a token of the suffix sees the last `sliding_window` tokens; big_vision has no
windows.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import gin
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from adalink_jax.errors import UserError
from adalink_jax.models import gemma
from adalink_jax.models.attention import AttentionKind, Bias
from adalink_jax.models.encoder_decoder import EndIds, check_ids, joined
from adalink_jax.models.layers import CachedKeyValues, KeyValues
from adalink_jax.models.rotary import Rotation, rotation
from adalink_jax.models.seam import Cache, Encoded, Inputs
from adalink_jax.models.stack import StackConfig, run_layers
from adalink_jax.models.structs import Struct
from adalink_jax.models.visual import Visual
from adalink_jax.parallel import constrain
from adalink_jax.typed_values import DType, Fraction, NonNegativeInt, PositiveFloat, PositiveInt


@gin.configurable
@dataclasses.dataclass(frozen=True)
class PaliGemmaConfig(StackConfig):
    """Sizes and settings of a PaliGemma's language model.

    Attributes:
      vocab_size: V, rows of the embedding table.
      emb_dim: D.
      num_heads: H, of the queries.
      num_kv_heads: heads of keys and values, which divide H.
      head_dim: K.
      mlp_dim: F.
      num_layers: depth of the stack.
      query_pre_attn_scalar: scores are divided by its square root.
      post_norms: whether sublayers have norms after them too (Gemma 2).
      attention_softcap: caps scores, at `c * tanh(score / c)`; None means no cap.
      logits_softcap: caps logits likewise.
      sliding_window: in windowed layers a token of the suffix sees this many tokens, with itself; None means all.
      full_attention_every: each so many layers, the last has no window.
      rope_theta: base of the rotary positions.
      encoder_embedding: whether the prefix has its own embedding table, which a folded text adapter needs.
      decoder_start_token_id: the decoder's first input in t5x's features; the model reads the last token of the prefix instead.
      pad_token_id: fills up rows; it is not attended to.
      eos_token_id: ends an output; of several, each does, and the vocabulary ends texts with the first.
      dropout_rate, dtype, scan_layers, remat, attention: as in T5Config.
    """

    vocab_size: PositiveInt
    emb_dim: PositiveInt
    num_heads: PositiveInt
    num_kv_heads: PositiveInt
    head_dim: PositiveInt
    mlp_dim: PositiveInt
    num_layers: PositiveInt
    query_pre_attn_scalar: PositiveInt
    post_norms: bool = False
    attention_softcap: PositiveFloat | None = None
    logits_softcap: PositiveFloat | None = None
    sliding_window: PositiveInt | None = None
    full_attention_every: PositiveInt = 2
    rope_theta: PositiveFloat = 10_000.0
    encoder_embedding: bool = False
    decoder_start_token_id: NonNegativeInt = 0
    pad_token_id: NonNegativeInt = 0
    eos_token_id: EndIds = 1
    dropout_rate: Fraction = 0.0
    dtype: DType = "float32"
    scan_layers: bool = False
    remat: str = "none"
    attention: AttentionKind = "auto"

    def __post_init__(self) -> None:
        check_ids(self)
        gemma.check_heads(self)


class Prefix(Struct):
    """The prefix's keys and values in one layer, or in all, stacked: of all tokens but the last, and of the last."""

    before: KeyValues
    last: KeyValues

    @classmethod
    def of(cls, kv: KeyValues) -> "Prefix":
        """Cuts the keys and values of one layer, [B, H, S, K]."""
        part = lambda where: KeyValues(kv.key[:, :, where], kv.value[:, :, where])
        return cls(part(slice(None, -1)), part(slice(-1, None)))


def _first(position: Int[Array, " T"], known: Array, x: Array, axis: int) -> Array:
    """`x` [rows, ...] with `known` [B, ...] at position 0 of the axis; where B is less, its rows are repeated."""
    known = jnp.repeat(known, x.shape[0] // known.shape[0], axis=0)
    return jnp.where(jnp.expand_dims(position == 0, range(1, x.ndim - axis)), known, x)


class Layer(gemma.Layer):
    """Attention and MLP; called as `stack.run_layers` requires.

    On the prefix, `per_layer` is None, and the result is the layer's `Prefix`. On the suffix, `per_layer` has the layer's window and its
    `Prefix`; and with a cache, T = 1, its number. Then a row of the prefix may serve several rows of `x`, decodes of one input.
    """

    def normed(self, y: Float[Array, "B L D"], norm: str) -> Float[Array, "B L D"]:
        """A sublayer's result, behind its norm in Gemma 2."""
        return super().normed(y, norm) if self.config.post_norms else y

    @nn.compact
    def __call__(
        self,
        carry: tuple[Float[Array, "B L D"], CachedKeyValues | None],
        per_layer: tuple[Int[Array, "2"] | None, Prefix, Int[Array, ""] | None] | None,
        bias: Bias,
        rotated: Rotation,
        position: Int[Array, " L"],
    ) -> tuple[tuple[Float[Array, "B L D"], CachedKeyValues | None], Prefix | None]:
        x, cached = carry
        attention = self.attention("self_attention")
        y = self.norm("pre_self_attention")(x)
        kv = attention.project(y, rotated)
        if per_layer is None:
            y, result = attention(y, kv, bias, rotated), Prefix.of(kv)
        else:
            window, prefix, layer = per_layer
            known = prefix.last
            kv = KeyValues(_first(position, known.key, kv.key, 2), _first(position, known.value, kv.value, 2))
            if cached is not None and layer is not None:
                cached = cached.put(kv, layer, position[0])
                kv = cached.of(layer)
            y, result = attention(y, kv, bias.replace(window=window), rotated, before=prefix.before), None
        return (self.mlp(self.add(x, y, "post_self_attention")), cached), result


class Encoder(nn.Module):
    """The prefix's own embedding table, where it has one."""

    config: PaliGemmaConfig

    def setup(self) -> None:
        cfg = self.config
        if cfg.encoder_embedding:
            self.token_embedder = gemma.Embed(cfg.vocab_size, cfg.emb_dim, cfg.dtype)


class Stack(gemma.Stack):
    """The stack of layers, called on the prefix and on the suffix."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        tokens: CachedKeyValues | None,
        per_layer: Any,
        bias: Bias,
        start: int | Array,
        index: int | Array,
        deterministic: bool,
    ) -> tuple[Float[Array, "B L D"], CachedKeyValues | None, Any]:
        """Runs the layers, with dropout before and after them, and the last norm.

        Args:
          x: embeddings of the prefix, or of the suffix.
          tokens: the cache of the suffix's keys and values; None without one.
          per_layer: what each layer gets of its own, see `Layer`.
          bias: which keys the queries see.
          start: position of `x` in the row.
          index: position of `x` in the prefix or suffix.
          deterministic: no dropout.

        Returns:
          The states, the cache, and the layers' results, see `Layer`.
        """
        cfg, length = self.config, jnp.arange(x.shape[1])
        (x, tokens), results = run_layers(
            Layer, cfg, (self.drop(x, deterministic), tokens), per_layer, bias,
            rotation(start + length, cfg.head_dim, cfg.rope_theta), index + length,
            num_layers=cfg.num_layers, deterministic=deterministic,
        )  # fmt: skip
        return self.end(x, "decoder_norm", deterministic), tokens, results


class PrefixLM(gemma.LanguageModel):
    """PaliGemma's language model. See `Backbone` for its methods."""

    encoder_type, decoder_type = Encoder, Stack
    config: PaliGemmaConfig  # pyright: ignore[reportIncompatibleVariableOverride]  # narrower; Flax modules are frozen

    def new_embedder(self) -> gemma.Embed:
        """The table of prefix, suffix and logits."""
        cfg = self.config
        return gemma.Embed(cfg.vocab_size, cfg.emb_dim, cfg.dtype)

    def encode(self, inputs: Inputs, train: bool = False) -> Encoded:
        """Runs the stack on [prompt ; image ; text], moved to the right end of each row; states and mask are moved likewise.

        Raises:
          UserError: for packed examples.
        """
        x, mask, segments = joined(inputs)
        if segments is not None:
            raise UserError(f"{type(self).__name__} takes one example per row; set PACK_EXAMPLES to False.")
        order = jnp.argsort(mask, axis=1, stable=True)
        x, mask = jnp.take_along_axis(x, order[..., None], axis=1), jnp.take_along_axis(mask, order, axis=1)
        x = constrain(x, "batch", "length", "embed")
        states, _, per_layer = self.decoder(x, None, None, Bias(keys=mask), 0, 0, deterministic=not train)
        return Encoded(states, mask, per_layer=per_layer)

    def decode_states(
        self,
        encoded: Encoded,
        target: Float[Array, "B T D"],
        cache: Cache | None = None,
        train: bool = False,
        segments: Int[Array | np.ndarray, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        """Runs the stack on the suffix; see `Backbone.decode_states`."""
        cfg, start = self.config, encoded.states.shape[1] - 1
        length = target.shape[1] if cache is None else cache.tokens.key.shape[3]
        index = jnp.zeros((), jnp.int32) if cache is None else cache.index
        windows = None
        if cfg.sliding_window is not None:
            window = (cfg.sliding_window - 1, gemma.ALL)
            windows = gemma.windows(cfg.num_layers, cfg.full_attention_every, window, start + length)
        x, tokens, _ = self.decoder(
            target, None if cache is None else cache.tokens,
            (windows, encoded.per_layer, None if cache is None else jnp.arange(cfg.num_layers)),
            Bias(keys=self._keys(encoded.mask, length), first=start + index), start + index, index, deterministic=not train,
        )  # fmt: skip
        x = _first(index + jnp.arange(target.shape[1]), encoded.states[:, -1:], x, 1)
        return x, None if cache is None else Cache(tokens, None, index + 1)

    def _keys(self, mask: Bool[Array, "B S"], length: int) -> Bool[Array, "B keys"]:
        """Which keys exist: those of the prefix but for its last token, and `length` of the suffix."""
        return jnp.concatenate([mask[:, :-1], jnp.ones((mask.shape[0], length), bool)], axis=1)

    def empty_cache(self, batch_size: int, max_length: int) -> Cache:
        """Returns the cache before the first decoding step: the suffix's [layers, B, heads, max_length, K], all zeros."""
        cfg = self.config
        shape = (cfg.num_layers, batch_size, cfg.num_kv_heads, max_length, cfg.head_dim)
        return Cache(CachedKeyValues.zeros(*shape, dtype=cfg.dtype), None, jnp.zeros((), jnp.int32))


@gin.configurable
class PaliGemma(Visual, PrefixLM):
    """A PaliGemma. See `Visual` for its attributes; visual tokens are one linear map of the tower's outputs."""
