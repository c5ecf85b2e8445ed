"""T5Gemma: an encoder-decoder of Gemma 2's blocks (Zhang et al., 2025, arXiv:2504.06225).

    encoder:  x = x + norm(attention(norm(x)));  x = x + norm(mlp(norm(x)))                       x [B, S, D]
    decoder:  the same with causal self-attention, and attention to the encoder in between        x [B, T, E]

Of two layers the first sees a window of tokens, the second all of them. Encoder and decoder have a table each; the decoder's is the
head too. Text enters the seam already multiplied by sqrt(D): what an adapter sees and adds to is what the first block reads.

The window of an encoder layer is that of `transformers`, a position wider on either side than that of google-deepmind/gemma; inputs
of at most `sliding_window` tokens do not show it.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import gin
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from adalink_jax.models import gemma, layers
from adalink_jax.models.attention import AttentionKind, Bias
from adalink_jax.models.attention.bias import sees
from adalink_jax.models.encoder_decoder import EndIds, check_ids
from adalink_jax.models.rotary import Rotation, rotation
from adalink_jax.models.seam import Cache, Encoded
from adalink_jax.models.stack import StackConfig, run_layers
from adalink_jax.typed_values import DType, Fraction, NonNegativeInt, PositiveFloat, PositiveInt


@gin.configurable
@dataclasses.dataclass(frozen=True)
class T5GemmaConfig(StackConfig):
    """Sizes and settings of a T5Gemma.

    Attributes:
      vocab_size: V, rows of either embedding table.
      emb_dim: D, width of the encoder.
      num_heads: H, of the encoder's queries.
      num_kv_heads: heads of its keys and values, which divide H.
      head_dim: K.
      mlp_dim: F, of its MLPs.
      num_encoder_layers: layers of the encoder.
      num_decoder_layers: layers of the decoder.
      decoder_emb_dim, decoder_num_heads, decoder_num_kv_heads, decoder_head_dim, decoder_mlp_dim: the decoder's; None means the
        encoder's.
      query_pre_attn_scalar: scores are divided by its square root.
      attention_softcap: caps scores, at `c * tanh(score / c)`; None means no cap.
      logits_softcap: caps logits likewise.
      sliding_window: a windowed encoder layer sees this many tokens on either side, one of the decoder this many in all.
      full_attention_every: each so many layers, the last sees all tokens.
      rope_theta: base of the rotary positions.
      decoder_start_token_id: the decoder's first input, BOS.
      pad_token_id: fills up rows; the encoder does not attend to it.
      eos_token_id: ends an output; of several, each does, and the vocabulary ends texts with the first.
      dropout_rate, dtype, scan_layers, remat, attention: as in T5Config.
    """

    vocab_size: PositiveInt
    emb_dim: PositiveInt
    num_heads: PositiveInt
    num_kv_heads: PositiveInt
    head_dim: PositiveInt
    mlp_dim: PositiveInt
    num_encoder_layers: PositiveInt
    num_decoder_layers: PositiveInt
    query_pre_attn_scalar: PositiveInt
    decoder_emb_dim: PositiveInt | None = None
    decoder_num_heads: PositiveInt | None = None
    decoder_num_kv_heads: PositiveInt | None = None
    decoder_head_dim: PositiveInt | None = None
    decoder_mlp_dim: PositiveInt | None = None
    attention_softcap: PositiveFloat | None = 50.0
    logits_softcap: PositiveFloat | None = 30.0
    sliding_window: PositiveInt = 4096
    full_attention_every: PositiveInt = 2
    rope_theta: PositiveFloat = 10_000.0
    decoder_start_token_id: NonNegativeInt = 2
    pad_token_id: NonNegativeInt = 0
    eos_token_id: EndIds = 1
    dropout_rate: Fraction = 0.0
    dtype: DType = "float32"
    scan_layers: bool = False
    remat: str = "none"
    attention: AttentionKind = "auto"
    encoder_embedding: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_ids(self)
        for name in ("emb_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim"):
            if getattr(self, f"decoder_{name}") is None:
                object.__setattr__(self, f"decoder_{name}", getattr(self, name))
        for side in ("", "decoder_"):
            gemma.check_heads(self, side)


class EncoderLayer(gemma.Layer):
    """Self-attention and MLP; called as `stack.run_layers` requires, with its window."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S D"], window: Int[Array, "2"] | None, bias: Bias, rotated: Rotation
    ) -> tuple[Float[Array, "B S D"], None]:
        attention = self.attention("attention")
        y = self.norm("pre_attention")(x)
        y = attention(y, attention.project(y, rotated), bias.replace(window=window), rotated)
        return self.mlp(self.add(x, y, "post_attention")), None


class DecoderLayer(gemma.Layer):
    """Causal self-attention, attention to the encoder, MLP; called as `stack.run_layers` requires.

    `per_layer` has the layer's window; and with a cache, T = 1, its number and the keys and values of the encoder's states, as
    in `t5.DecoderLayer`.
    """

    side = "decoder_"

    @nn.compact
    def __call__(
        self,
        carry: tuple[Float[Array, "B T E"], layers.CachedKeyValues | None],
        per_layer: tuple[Int[Array, "2"] | None, tuple[Int[Array, ""], layers.KeyValues | None] | None],
        encoded: Float[Array, "inputs S D"],
        bias: Bias,
        rotated: Rotation,
        cross_bias: Bias,
        index: Int[Array, ""],
    ) -> tuple[tuple[Float[Array, "B T E"], layers.CachedKeyValues | None], layers.KeyValues | None]:
        (x, cached), (window, of_cache) = carry, per_layer
        layer, cross = of_cache or (None, None)
        attention = self.attention("self_attention")
        y = self.norm("pre_self_attention")(x)
        kv = attention.project(y, rotated)
        if cached is None or layer is None:
            bias = bias.replace(window=window)
        else:
            cached = cached.put(kv, layer, index)
            kv = cached.of(layer)
            rows, _, keys, _ = kv.key.shape
            seen = sees(jnp.arange(keys), index, causal=True, window=window)
            bias = Bias(keys=jnp.broadcast_to(seen, (rows, keys)))
        x = self.add(x, attention(y, kv, bias, rotated), "post_self_attention")

        attention = self.attention("encoder_decoder_attention")
        y = self.norm("pre_cross_attention")(x)
        known = cross is not None
        cross = cross if known else attention.project(encoded)
        x = self.add(x, attention(y, cross, cross_bias), "post_cross_attention")
        return (self.mlp(x), cached), None if cached is None or known else cross


class Encoder(gemma.Stack):
    """The stack of encoder layers, and the encoder's embedding table."""

    def setup(self) -> None:
        cfg = self.config
        self.token_embedder = gemma.Embed(cfg.vocab_size, cfg.emb_dim, cfg.dtype)

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S D"], mask: Array, segments: Int[Array, "B S"] | None, deterministic: bool
    ) -> Float[Array, "B S D"]:
        cfg, length = self.config, x.shape[1]
        window = (cfg.sliding_window, cfg.sliding_window)
        x, _ = run_layers(
            EncoderLayer, cfg, self.drop(x, deterministic),
            gemma.windows(cfg.num_encoder_layers, cfg.full_attention_every, window, length),
            Bias(keys=mask, query_segments=segments, key_segments=segments),
            rotation(jnp.arange(length), cfg.head_dim, cfg.rope_theta),
            num_layers=cfg.num_encoder_layers, deterministic=deterministic,
        )  # fmt: skip
        return self.end(x, "encoder_norm", deterministic)


class Decoder(gemma.Stack):
    """The stack of decoder layers. With a cache T is 1."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T E"],
        encoded: Encoded,
        segments: Int[Array, "B T"] | None,
        cache: Cache | None,
        deterministic: bool,
    ) -> tuple[Float[Array, "B T E"], Cache | None]:
        cfg: Any = self.config
        length, number = x.shape[1], cfg.num_decoder_layers
        index = jnp.zeros((), jnp.int32) if cache is None else cache.index
        keys = length if cache is None else cache.tokens.key.shape[3]
        window = (cfg.sliding_window - 1, gemma.ALL)  # before: with the token itself `sliding_window`
        windows = gemma.windows(number, cfg.full_attention_every, window, keys)
        (x, tokens), cross = run_layers(
            DecoderLayer, cfg,
            (self.drop(x, deterministic), None if cache is None else cache.tokens),
            (windows, None if cache is None else (jnp.arange(number), cache.inputs)),
            encoded.states,
            Bias(first=index, query_segments=segments, key_segments=segments),
            rotation(index + jnp.arange(length), cfg.decoder_head_dim, cfg.rope_theta),
            Bias(keys=encoded.mask, query_segments=segments, key_segments=encoded.segments),
            index,
            num_layers=number, deterministic=deterministic,
        )  # fmt: skip
        x = self.end(x, "decoder_norm", deterministic)
        if cache is not None:
            cache = Cache(tokens, cross if cache.inputs is None else cache.inputs, index + 1)
        return x, cache


@gin.configurable
class T5Gemma(gemma.LanguageModel):
    """A T5Gemma backbone. See `Backbone` for its methods."""

    encoder_type, decoder_type = Encoder, Decoder
    config: T5GemmaConfig  # pyright: ignore[reportIncompatibleVariableOverride]  # narrower; Flax modules are frozen

    def new_embedder(self) -> gemma.Embed:
        """The table of the decoder and the logits."""
        cfg: Any = self.config
        return gemma.Embed(cfg.vocab_size, cfg.decoder_emb_dim, cfg.dtype)

    @property
    def inputs_embeds_scale(self) -> float:
        """The same: in Hugging Face's T5Gemma the factor follows the embedding module."""
        return self.embedding_scale

    def empty_cache(self, batch_size: int, max_length: int) -> Cache:
        """Returns the cache before the first decoding step: self-attention [layers, B, heads, max_length, K], all zeros."""
        cfg: Any = self.config
        shape = (cfg.num_decoder_layers, batch_size, cfg.decoder_num_kv_heads, max_length, cfg.decoder_head_dim)
        return Cache(layers.CachedKeyValues.zeros(*shape, dtype=cfg.dtype), None, jnp.zeros((), jnp.int32))
