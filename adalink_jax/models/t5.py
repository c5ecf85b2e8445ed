"""T5 encoder-decoder: T5 1.0 and 1.1, FLAN-T5, mT5, ByT5, UL2, by configuration (Raffel et al., 2020, arXiv:1910.10683).

    encoder:  x = x + attention(norm(x));  x = x + mlp(norm(x))                                   x [B, S, D]
    decoder:  the same with causal self-attention, and attention to the encoder in between        x [B, T, D]

Norms are RMS norms before each sublayer; positions enter as a relative bias of the attention scores; attention has no
1/sqrt(K) at run time, as the query's initialisation includes it. Parameter names and initialisation are those of t5x
(`t5x/examples/t5/network.py`). `T5` implements `Backbone`, most of it by `EncoderDecoder`.
"""

import dataclasses

import flax.linen as nn
import gin
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int

from adalink_jax.models import layers
from adalink_jax.models.attention import AttentionKind, Bias, Scores, for_stack
from adalink_jax.models.encoder_decoder import EncoderDecoder, EndIds, check_ids
from adalink_jax.models.layers import Activation
from adalink_jax.models.relative import RelativePositionBias
from adalink_jax.models.seam import Cache, Encoded
from adalink_jax.models.stack import StackConfig, run_layers
from adalink_jax.parallel import constrain
from adalink_jax.typed_values import DType, Fraction, NonNegativeInt, PositiveInt


@gin.configurable
@dataclasses.dataclass(frozen=True)
class T5Config(StackConfig):
    """Sizes and settings of a T5 (t5x's names).

    Attributes:
      vocab_size: V, rows of the embedding table.
      emb_dim: D.
      num_heads: H.
      head_dim: K.
      mlp_dim: F.
      num_encoder_layers: layers of the encoder.
      num_decoder_layers: layers of the decoder.
      mlp_activations: one name (plain) or two (gated) of `relu`, `gelu`, `silu`, `linear`.
      logits_via_embedding: tie the logits to the embedding table (T5 1.0); they are then scaled by D^-0.5.
      encoder_embedding: the encoder has its own table, `encoder/token_embedder`, instead of sharing one with the decoder
        (and with tied logits). Folding a text adapter needs it.
      relpos_num_buckets: relative-position buckets.
      relpos_max_distance: distance beyond which all positions share a bucket.
      relpos_per_layer: every layer has its own relative-position table (t5x's scanned networks), instead of one per stack.
      decoder_start_token_id: the decoder's first input.
      pad_token_id: fills up rows; the encoder does not attend to it.
      eos_token_id: ends an output; of several, each does, and the vocabulary ends texts with the first.
      dropout_rate: dropout of attention weights, hidden units and residual branches while training.
      dtype: dtype of the activations, "float32" or "bfloat16"; parameters are float32.
      scan_layers: compile one layer for the whole stack, with parameters stacked on axis 0.
      remat: "none"; or "frozen", "dots", "full", "save:...", which save fewer activations and recompute the others in the backward
        pass (`stack.remat_policy`).
      attention: "auto", "reference", "blockwise", "pallas" or "cudnn", see `attention.attend`.
    """

    vocab_size: PositiveInt
    emb_dim: PositiveInt
    num_heads: PositiveInt
    head_dim: PositiveInt
    mlp_dim: PositiveInt
    num_encoder_layers: PositiveInt
    num_decoder_layers: PositiveInt
    mlp_activations: tuple[Activation, ...] = ("gelu", "linear")
    logits_via_embedding: bool = False
    encoder_embedding: bool = False
    relpos_num_buckets: PositiveInt = 32
    relpos_max_distance: PositiveInt = 128
    relpos_per_layer: bool = False
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


def _attention(config: T5Config, deterministic: bool, name: str) -> layers.Attention:
    return layers.Attention(
        config.num_heads, config.head_dim, config.dropout_rate, config.dtype, deterministic,
        query_init=nn.initializers.normal((config.emb_dim * config.head_dim) ** -0.5),
        features=config.emb_dim, kind=config.attention, name=name,
    )  # fmt: skip


def _add_relative(config: T5Config, bias: Bias, distances: Array, *, bidirectional: bool, per_layer: bool) -> Bias:
    """Adds the relative position bias of a layer or of a whole stack, whichever has it, inside its compact method.

    Args:
      config: sizes, and whether layers have their own.
      bias: the bias so far.
      distances: of keys from queries, as `Bias.relative` has them.
      bidirectional: whether later keys are seen.
      per_layer: whether the caller is a layer.
    """
    if config.relpos_per_layer != per_layer:
        return bias
    relative = RelativePositionBias(
        config.num_heads, bidirectional, config.relpos_num_buckets, config.relpos_max_distance, name="relpos_bias"
    )
    return bias.replace(relative=relative(distances))


class _Residual(nn.Module):
    """Base of encoder and decoder layers: pre-norm and dropout around each sublayer."""

    config: T5Config
    deterministic: bool

    def drop(self, x: Array) -> Array:
        return nn.Dropout(self.config.dropout_rate, broadcast_dims=(-2,))(x, deterministic=self.deterministic)

    def mlp(self, x: Array) -> Array:
        cfg = self.config
        y = layers.RMSNorm(cfg.dtype, name="pre_mlp_layer_norm")(x)
        y = layers.MlpBlock(
            cfg.mlp_dim, cfg.mlp_activations, cfg.dropout_rate, cfg.dtype, self.deterministic, name="mlp"
        )(y)
        return constrain(x + self.drop(y), "batch", "length", "embed")


class EncoderLayer(_Residual):
    """Self-attention and MLP; called as `stack.run_layers` requires."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S D"], _: None, bias: Bias, distances: Int[Array, " distances"]
    ) -> tuple[Float[Array, "B S D"], None]:
        bias = _add_relative(self.config, bias, distances, bidirectional=True, per_layer=True)
        y = layers.RMSNorm(self.config.dtype, name="pre_attention_layer_norm")(x)
        attention = _attention(self.config, self.deterministic, "attention")
        x = x + self.drop(attention(y, attention.project(y), bias))
        return self.mlp(x), None


class DecoderLayer(_Residual):
    """Causal self-attention, attention to the encoder, MLP; called as `stack.run_layers` requires.

    Without a cache, both parts of the carry but `x` and both of `per_layer` are None. With one, T = 1, the layers carry its
    `CachedKeyValues`, and a layer has its number and the keys and values of the encoder's states: None in the first step,
    which returns them. Then a row of them may serve several rows of `x`, decodes of one input.
    """

    @nn.compact
    def __call__(
        self,
        carry: tuple[Float[Array, "B T D"], layers.CachedKeyValues | None],
        per_layer: tuple[Int[Array, ""], layers.KeyValues | None] | None,
        encoded: Float[Array, "inputs S D"],
        self_bias: Bias,
        distances: Int[Array, " distances"],
        cross_bias: Bias,
        index: Int[Array, ""],
    ) -> tuple[tuple[Float[Array, "B T D"], layers.CachedKeyValues | None], layers.KeyValues | None]:
        (x, cached), (layer, cross) = carry, per_layer or (None, None)
        self_bias = _add_relative(self.config, self_bias, distances, bidirectional=False, per_layer=True)
        y = layers.RMSNorm(self.config.dtype, name="pre_self_attention_layer_norm")(x)
        attention = _attention(self.config, self.deterministic, "self_attention")
        kv = attention.project(y)
        if cached is not None and layer is not None:
            cached = cached.put(kv, layer, index)
            kv = cached.of(layer)
        x = x + self.drop(attention(y, kv, self_bias))

        y = layers.RMSNorm(self.config.dtype, name="pre_cross_attention_layer_norm")(x)
        attention = _attention(self.config, self.deterministic, "encoder_decoder_attention")
        known = cross is not None
        cross = cross if known else attention.project(encoded)
        x = x + self.drop(attention(y, cross, cross_bias))
        return (self.mlp(x), cached), None if cached is None or known else cross


class Encoder(nn.Module):
    """The stack of encoder layers, and the encoder's own embedding table where it has one."""

    config: T5Config

    def setup(self) -> None:
        cfg = self.config
        if cfg.encoder_embedding:
            self.token_embedder = layers.Embed(cfg.vocab_size, cfg.emb_dim, cfg.dtype)

    def positioned(self, bias: Bias, distances: Int[Array, " distances"]) -> Bias:
        """`bias` with what the whole stack adds for positions; called inside the compact method."""
        return _add_relative(self.config, bias, distances, bidirectional=True, per_layer=False)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "B S"],
        segments: Int[Array, "B S"] | None,
        deterministic: bool,
    ) -> Float[Array, "B S D"]:
        cfg = self.config
        distances = jnp.arange(1 - x.shape[1], x.shape[1])
        bias = Bias(keys=mask, query_segments=segments, key_segments=segments)
        bias = self.positioned(bias, distances)
        bias = for_stack(bias, cfg.attention, Scores(x.shape[1], x.shape[1], cfg.head_dim, cfg.dtype))
        x = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))(x, deterministic=deterministic)
        x, _ = run_layers(
            EncoderLayer, cfg, x, None, bias, distances, num_layers=cfg.num_encoder_layers, deterministic=deterministic
        )
        x = layers.RMSNorm(cfg.dtype, name="encoder_norm")(x)
        return nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))(x, deterministic=deterministic)


class Decoder(nn.Module):
    """The stack of decoder layers, and the head of the logits where they are not tied. With a cache T is 1."""

    config: T5Config

    def setup(self) -> None:
        cfg = self.config
        if not cfg.logits_via_embedding:
            self.logits_dense = layers.Dense(cfg.vocab_size, ("embed", "vocab"), cfg.dtype)

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        encoded: Encoded,
        segments: Int[Array, "B T"] | None,
        cache: Cache | None,
        deterministic: bool,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        cfg = self.config
        index = jnp.zeros((), jnp.int32) if cache is None else cache.index
        keys = x.shape[1] if cache is None else cache.tokens.key.shape[3]
        distances = jnp.arange(1 - x.shape[1], keys) - index
        self_bias = Bias(first=index, query_segments=segments, key_segments=segments)
        self_bias = _add_relative(cfg, self_bias, distances, bidirectional=False, per_layer=False)
        self_bias = for_stack(self_bias, cfg.attention, Scores(x.shape[1], keys, cfg.head_dim, cfg.dtype))
        cross_bias = Bias(keys=encoded.mask, query_segments=segments, key_segments=encoded.segments)
        x = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))(x, deterministic=deterministic)
        (x, tokens), cross = run_layers(
            DecoderLayer, cfg,
            (x, None if cache is None else cache.tokens),
            None if cache is None else (jnp.arange(cfg.num_decoder_layers), cache.inputs),
            encoded.states, self_bias, distances, cross_bias, index,
            num_layers=cfg.num_decoder_layers, deterministic=deterministic,
        )  # fmt: skip
        x = layers.RMSNorm(cfg.dtype, name="decoder_norm")(x)
        x = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))(x, deterministic=deterministic)
        if cache is not None:
            cache = Cache(tokens, cross if cache.inputs is None else cache.inputs, index + 1)
        return x, cache


@gin.configurable
class T5(EncoderDecoder):
    """A T5 backbone. See `Backbone` for its methods."""

    encoder_type, decoder_type = Encoder, Decoder
    config: T5Config  # pyright: ignore[reportIncompatibleVariableOverride]  # narrower; Flax modules are frozen

    def setup(self) -> None:
        cfg = self.config
        self.token_embedder = layers.Embed(cfg.vocab_size, cfg.emb_dim, cfg.dtype)
        super().setup()

    def embed_text(self, tokens: Int[Array | np.ndarray, "B L"]) -> Float[Array, "B L D"]:
        """Embeds the encoder's ids, by its own table where it has one."""
        return (self.encoder.token_embedder if self.config.encoder_embedding else self.token_embedder)(tokens)

    def embed_target(self, tokens: Int[Array | np.ndarray, "B T"]) -> Float[Array, "B T D"]:
        """Embeds decoder input ids."""
        return self.token_embedder(tokens)

    def logits(self, states: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Scores every token, by the head or by the embedding table."""
        if self.config.logits_via_embedding:
            logits = self.token_embedder.attend(states * self.config.emb_dim**-0.5)
        else:
            logits = self.decoder.logits_dense(states)
        return constrain(logits.astype(jnp.float32), "batch", "length", "vocab")

    def empty_cache(self, batch_size: int, max_length: int) -> Cache:
        """Returns the cache before the first decoding step: self-attention [layers, B, H, max_length, K], all zeros."""
        cfg = self.config
        shape = (cfg.num_decoder_layers, batch_size, cfg.num_heads, max_length, cfg.head_dim)
        return Cache(layers.CachedKeyValues.zeros(*shape, dtype=cfg.dtype), None, jnp.zeros((), jnp.int32))
