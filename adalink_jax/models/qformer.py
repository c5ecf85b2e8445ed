"""The Q-Former of BLIP-2: learned queries that read an image and summarise it in a few vectors (Li et al., 2023).

    visual tokens [B, tokens, width] -> queries [B, N, emb_dim]

It is a BERT (post-norm layers) whose sequence is the queries; in every `cross_attention_frequency`-th layer they attend to the
vision tower's tokens. InstructBLIP's (Dai et al., 2023) appends the words of the instruction to the queries. Both attend to
each other, the words have their own MLP, and their last states are dropped.
"""

import dataclasses

import flax.linen as nn
import gin
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from adalink_jax.models import layers
from adalink_jax.models.attention import AttentionKind, Bias
from adalink_jax.typed_values import DType, Fraction, NonNegativeInt, PositiveInt

EPSILON = 1e-12  # BERT's, of all layer norms


@gin.configurable
@dataclasses.dataclass(frozen=True)
class QFormerConfig:
    """Sizes of a Q-Former.

    Attributes:
      num_query_tokens: N, the queries: visual tokens of one image.
      emb_dim, num_heads, mlp_dim, num_layers: as in ViTConfig.
      cross_attention_frequency: layers 0, this, twice this, ... attend to the image.
      vocab_size: ids of the instruction's vocabulary (BERT's); 0 if it reads no instruction.
      max_length: positions of the instruction.
      dropout_rate: as in T5Config.
      dtype: dtype of the arithmetic. BLIP-2 uses float32, regardless of the other parts' dtype.
      attention: as in T5Config.
    """

    num_query_tokens: PositiveInt = 32
    emb_dim: PositiveInt = 768
    num_heads: PositiveInt = 12
    mlp_dim: PositiveInt = 3072
    num_layers: PositiveInt = 12
    cross_attention_frequency: PositiveInt = 2
    vocab_size: NonNegativeInt = 0
    max_length: PositiveInt = 512
    dropout_rate: Fraction = 0.0
    dtype: DType = "float32"
    attention: AttentionKind = "auto"


class QFormerLayer(nn.Module):
    """One layer on x [B, N + M, emb_dim]: N queries, then M words of the instruction (M may be 0).

    Attributes:
      config: sizes.
      cross: whether the queries attend to the image in this layer.
      deterministic: no dropout.
    """

    config: QFormerConfig
    cross: bool
    deterministic: bool

    def setup(self) -> None:
        cfg = self.config
        attention = lambda: layers.Attention(
            cfg.num_heads, cfg.emb_dim // cfg.num_heads, cfg.dropout_rate, cfg.dtype, self.deterministic,
            scale=(cfg.emb_dim // cfg.num_heads) ** -0.5, use_bias=True, features=cfg.emb_dim,
            kind=cfg.attention,
        )  # fmt: skip
        mlp = lambda: layers.MlpBlock(
            cfg.mlp_dim, ("gelu_exact",), cfg.dropout_rate, cfg.dtype, self.deterministic, use_bias=True
        )
        norm = lambda: layers.LayerNorm(cfg.dtype, EPSILON)
        self.self_attention, self.post_self_attention_layer_norm = attention(), norm()
        if self.cross:
            self.cross_attention, self.post_cross_attention_layer_norm = attention(), norm()
        self.query_mlp, self.post_query_mlp_layer_norm = mlp(), norm()
        if cfg.vocab_size:
            self.mlp, self.post_mlp_layer_norm = mlp(), norm()
        self.dropout = nn.Dropout(cfg.dropout_rate)

    def __call__(
        self,
        x: Float[Array, "B sequence D"],
        image: Float[Array, "B tokens width"],
        bias: Bias,
    ) -> Float[Array, "B sequence D"]:
        add = lambda x, y: x + self.dropout(y, deterministic=self.deterministic)
        attended = self.self_attention(x, self.self_attention.project(x), bias)
        x = self.post_self_attention_layer_norm(add(x, attended))
        queries, words = jnp.split(x, [self.config.num_query_tokens], axis=1)
        if self.cross:
            read = self.cross_attention(queries, self.cross_attention.project(image))
            queries = self.post_cross_attention_layer_norm(add(queries, read))
        queries = self.post_query_mlp_layer_norm(add(queries, self.query_mlp(queries)))
        if self.config.vocab_size:
            words = self.post_mlp_layer_norm(add(words, self.mlp(words)))
        return jnp.concatenate([queries, words], axis=1)


class QFormer(nn.Module):
    """The whole Q-Former. Its outputs have the visual tokens' dtype."""

    config: QFormerConfig

    @nn.compact
    def __call__(
        self, image: Float[Array, "B tokens width"], words: Int[Array | np.ndarray, "B M"] | None, train: bool = False
    ) -> Float[Array, "B N D"]:
        """Reads visual tokens and the instruction's ids (0 is padding), which are None if `config.vocab_size` is 0."""
        cfg, rows = self.config, image.shape[0]
        small = nn.initializers.normal(0.02)
        queries = layers.param(self, "query_tokens", small, (cfg.num_query_tokens, cfg.emb_dim), ("position", "embed"))
        x = jnp.broadcast_to(queries.astype(cfg.dtype), (rows, *queries.shape))
        mask = jnp.ones((rows, cfg.num_query_tokens), bool)
        if words is not None:
            positions = layers.param(self, "pos_embedding", small, (cfg.max_length, cfg.emb_dim), ("position", "embed"))
            embedded = layers.Embed(cfg.vocab_size, cfg.emb_dim, cfg.dtype, name="token_embedder")(words)
            x = jnp.concatenate([x, embedded + positions[: words.shape[1]].astype(cfg.dtype)], axis=1)
            mask = jnp.concatenate([mask, words > 0], axis=1)
        x = layers.LayerNorm(cfg.dtype, EPSILON, name="embedding_layer_norm")(x)
        x = nn.Dropout(cfg.dropout_rate)(x, deterministic=not train)
        for i in range(cfg.num_layers):
            cross = i % cfg.cross_attention_frequency == 0
            x = QFormerLayer(cfg, cross, not train, name=f"layers_{i}")(x, image, Bias(keys=mask))
        return x[:, : cfg.num_query_tokens].astype(image.dtype)
