"""The Q-Former of BLIP-2 (Li et al., 2023): learned queries that read an image, and give it as a few vectors.

A BERT (post-norm layers) whose sequence is the queries; in every `cross_attention_frequency`-th layer they attend to the
vision tower's tokens. InstructBLIP's (Dai et al., 2023) has the words of the instruction behind the queries, which
attend to each other, with an MLP of their own; the words' last states are dropped.
"""

import dataclasses

import flax.linen as nn
import gin
import jax
import jax.numpy as jnp

from adalink_jax.models import layers

EPSILON = 1e-12  # of the layer norms, as BERT's


@gin.configurable
@dataclasses.dataclass(frozen=True)
class QFormerConfig:
    """Sizes of a Q-Former.

    Attributes:
      num_query_tokens: queries, which is N: visual tokens of one image.
      emb_dim, num_heads, mlp_dim, num_layers: as in ViTConfig.
      cross_attention_frequency: layers 0, this, twice this, ... attend to the image.
      vocab_size: ids of the instruction's vocabulary (BERT's); 0: it reads no instruction.
      max_length: positions of the instruction.
      dropout_rate: as in T5Config.
      dtype: of its arithmetic; BLIP-2 is used with float32 whatever the others' is.
    """

    num_query_tokens: int = 32
    emb_dim: int = 768
    num_heads: int = 12
    mlp_dim: int = 3072
    num_layers: int = 12
    cross_attention_frequency: int = 2
    vocab_size: int = 0
    max_length: int = 512
    dropout_rate: float = 0.0
    dtype: str = "float32"


class QFormerLayer(nn.Module):
    """x [B, Q + M, width]: Q queries, then M words of the instruction (M may be 0).

    Attributes:
      config: sizes.
      cross: whether the queries attend to the image here.
      deterministic: no dropout.
    """

    config: QFormerConfig
    cross: bool
    deterministic: bool

    def setup(self):
        cfg = self.config
        attention = lambda: layers.Attention(
            cfg.num_heads, cfg.emb_dim // cfg.num_heads, cfg.dropout_rate, cfg.dtype, self.deterministic,
            scale=(cfg.emb_dim // cfg.num_heads) ** -0.5, use_bias=True, features=cfg.emb_dim,
        )  # fmt: skip
        mlp = lambda: layers.MlpBlock(
            cfg.mlp_dim, ("gelu_exact",), cfg.dropout_rate, cfg.dtype, self.deterministic, use_bias=True
        )
        self.self_attention, self.post_self_attention_layer_norm = attention(), _norm(cfg)
        if self.cross:
            self.cross_attention, self.post_cross_attention_layer_norm = attention(), _norm(cfg)
        self.query_mlp, self.post_query_mlp_layer_norm = mlp(), _norm(cfg)
        if cfg.vocab_size:
            self.mlp, self.post_mlp_layer_norm = mlp(), _norm(cfg)
        self.dropout = nn.Dropout(cfg.dropout_rate)

    def __call__(self, x, image, bias):
        """`image` [B, tokens, its width]; `bias` broadcasts to [B, H, Q + M, Q + M]."""
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
    """Visual tokens [B, tokens, their width] (and the instruction) -> [B, Q, emb_dim], in the visual tokens' dtype."""

    config: QFormerConfig

    @nn.compact
    def __call__(self, image: jax.Array, words: jax.Array | None, train: bool = False) -> jax.Array:
        """`words` int32 [B, M] (0 is padding), or None where `config.vocab_size` is 0."""
        cfg, rows = self.config, image.shape[0]
        small = nn.initializers.normal(0.02)
        queries = layers.param(self, "query_tokens", small, (cfg.num_query_tokens, cfg.emb_dim), ("position", "embed"))
        x = jnp.broadcast_to(queries.astype(cfg.dtype), (rows, *queries.shape))
        mask = jnp.ones((rows, cfg.num_query_tokens), bool)
        if cfg.vocab_size:
            positions = layers.param(self, "pos_embedding", small, (cfg.max_length, cfg.emb_dim), ("position", "embed"))
            embedded = layers.Embed(cfg.vocab_size, cfg.emb_dim, cfg.dtype, name="token_embedder")(words)
            x = jnp.concatenate([x, embedded + positions[: words.shape[1]].astype(cfg.dtype)], axis=1)
            mask = jnp.concatenate([mask, words > 0], axis=1)
        x = layers.LayerNorm(cfg.dtype, EPSILON, name="embedding_layer_norm")(x)
        x = nn.Dropout(cfg.dropout_rate)(x, deterministic=not train)
        bias = layers.mask_to_bias(mask)[:, None, None, :]
        for i in range(cfg.num_layers):
            cross = i % cfg.cross_attention_frequency == 0
            x = QFormerLayer(cfg, cross, not train, name=f"layers_{i}")(x, image, bias)
        return x[:, : cfg.num_query_tokens].astype(image.dtype)


def _norm(config: QFormerConfig) -> layers.LayerNorm:
    return layers.LayerNorm(config.dtype, EPSILON)
