"""T5Gemma 2: an encoder-decoder of Gemma 3's blocks whose encoder reads images (Zhang et al., 2025, arXiv:2512.14856).

    images -> ViT (`vision/`) -> mean of 4 x 4 tokens -> norm and linear map (`projection/`) -> visual tokens [B, N, D]
    encoder:  x = x + norm(attention(norm(x)));  x = x + norm(mlp(norm(x)))                      x [B, L, D]
    decoder:  the same; its attention is merged: in one softmax, to the encoder's states and, causally, to the tokens so far

Of six layers the first five see a window of tokens, the sixth all of them, with another rotation. Each head's queries and keys are
normed. The encoder's states have no window and their keys no rotation. One table embeds the text of both sides and is the head.

Visual tokens take the places of the text's tokens `image_token_id`. They and the vector of `end_of_image_token_id`, which is not
in the table, are not multiplied by sqrt(D); other text is, before the seam.
"""

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import gin
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from adalink_jax.errors import UserError
from adalink_jax.models import gemma, layers
from adalink_jax.models.attention import AttentionKind, Bias
from adalink_jax.models.backbone import Batch
from adalink_jax.models.encoder_decoder import EndIds, check_ids
from adalink_jax.models.quantised import product
from adalink_jax.models.rotary import Rotation, rotation
from adalink_jax.models.seam import Cache, Encoded, Inputs
from adalink_jax.models.stack import StackConfig, run_layers
from adalink_jax.models.t5gemma import T5Gemma
from adalink_jax.models.visual import Visual
from adalink_jax.typed_values import DType, Fraction, NonNegativeInt, PositiveFloat, PositiveInt


@gin.configurable
@dataclasses.dataclass(frozen=True)
class T5Gemma2Config(StackConfig):
    """Sizes and settings of a T5Gemma 2's language model.

    Attributes:
      vocab_size: V, rows of the embedding table.
      emb_dim: D, of encoder and decoder.
      num_heads: H, of the queries.
      num_kv_heads: heads of keys and values, which divide H.
      head_dim: K.
      mlp_dim: F.
      num_encoder_layers: layers of the encoder.
      num_decoder_layers: layers of the decoder.
      query_pre_attn_scalar: scores are divided by its square root.
      logits_softcap: caps logits, at `c * tanh(logit / c)`; None means no cap.
      sliding_window: w; a token sees itself and, in the decoder's windowed layers, w - 1 tokens before it; in the encoder's,
        (w + 1) // 2 - 1 before and w // 2 after it.
      full_attention_every: each so many layers, the last sees all tokens.
      rope_theta: base of the rotary positions in layers that see all tokens.
      rope_factor: divides their positions.
      local_rope_theta: base in layers with a window.
      image_pool: side of the square of the tower's tokens whose mean is a visual token.
      image_token_id: its places in the text are those of visual tokens.
      end_of_image_token_id: is embedded as a vector of its own.
      encoder_embedding: whether the encoder has its own embedding table, which a folded text adapter needs.
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
    logits_softcap: PositiveFloat | None = None
    sliding_window: PositiveInt = 512
    full_attention_every: PositiveInt = 6
    rope_theta: PositiveFloat = 1_000_000.0
    rope_factor: PositiveFloat = 8.0
    local_rope_theta: PositiveFloat = 10_000.0
    image_pool: PositiveInt = 4
    image_token_id: NonNegativeInt = 256_001
    end_of_image_token_id: NonNegativeInt = 256_000
    encoder_embedding: bool = False
    decoder_start_token_id: NonNegativeInt = 2
    pad_token_id: NonNegativeInt = 0
    eos_token_id: EndIds = 1
    dropout_rate: Fraction = 0.0
    dtype: DType = "float32"
    scan_layers: bool = False
    remat: str = "none"
    attention: AttentionKind = "auto"
    attention_softcap: ClassVar[None] = None

    def __post_init__(self) -> None:
        check_ids(self)
        gemma.check_heads(self)
        ids = self.image_token_id, self.end_of_image_token_id, self.pad_token_id
        if len(set(ids)) < len(ids) or max(ids) >= self.vocab_size:
            raise UserError(
                f"T5Gemma2Config has image_token_id {ids[0]}, end_of_image_token_id {ids[1]} and pad_token_id {ids[2]}; they must "
                f"differ and be below vocab_size, {self.vocab_size}."
            )

    @property
    def decoder_emb_dim(self) -> int:
        """The decoder's width, which is the encoder's."""
        return self.emb_dim

    @property
    def decoder_num_kv_heads(self) -> int:
        """The decoder's heads of keys and values, as many as the encoder's."""
        return self.num_kv_heads

    @property
    def decoder_head_dim(self) -> int:
        """The decoder's head width, which is the encoder's."""
        return self.head_dim


class Embed(gemma.Embed):
    """An embedding table with a vector of its own for one id, which is not multiplied by sqrt(D)."""

    end_of_image_id: int

    def setup(self) -> None:
        super().setup()
        self.end_of_image = layers.param(self, "end_of_image", nn.initializers.zeros, (self.features,), ("embed",))

    def __call__(self, ids: Int[Array | np.ndarray, "B L"]) -> Float[Array, "B L D"]:
        is_end = (jnp.asarray(ids) == self.end_of_image_id)[..., None]
        return jnp.where(is_end, self.end_of_image.astype(self.dtype), super().__call__(ids))


def _embedder(cfg: T5Gemma2Config) -> Embed:
    return Embed(cfg.vocab_size, cfg.emb_dim, cfg.dtype, end_of_image_id=cfg.end_of_image_token_id)


class Projection(nn.Module):
    """The map of the tower's outputs to D: a norm and a matrix [width, D]."""

    features: int
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B N width"]) -> Float[Array, "B N D"]:
        x = gemma.RMSNorm(self.dtype, name="norm")(x)
        axes = ("vision_embed", "embed")
        kernel = layers.param(self, "kernel", layers.fan_in, (x.shape[-1], self.features), axes)
        return product(x, kernel, self.dtype, axes)


def _rotations(cfg: T5Gemma2Config, positions: Int[Array, " L"]) -> Rotation:
    """The rotation of layers with a window, and that of the others, stacked."""
    windowed = rotation(positions, cfg.head_dim, cfg.local_rope_theta)
    full = rotation(positions, cfg.head_dim, cfg.rope_theta, cfg.rope_factor)
    return jax.tree.map(lambda *x: jnp.stack(x), windowed, full)


def _kinds(cfg: T5Gemma2Config, number: int, window: tuple[int, int], length: int) -> Any:
    """What differs between a stack's layers: their window (None where none is felt), and which of `_rotations` is theirs."""
    full = (np.arange(number) + 1) % cfg.full_attention_every == 0
    return gemma.windows(number, cfg.full_attention_every, window, length), jnp.asarray(full, jnp.int32)


class EncoderLayer(gemma.Layer):
    """Self-attention and MLP; called as `stack.run_layers` requires, with its window and the number of its rotation."""

    head_norms = True

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        kind: tuple[Int[Array, "2"] | None, Int[Array, ""]],
        bias: Bias,
        rotations: Rotation,
    ) -> tuple[Float[Array, "B S D"], None]:
        window, number = kind
        rotated = jax.tree.map(lambda x: x[number], rotations)
        attention = self.attention("attention")
        y = self.norm("pre_attention")(x)
        y = attention(y, attention.project(y, rotated), bias.replace(window=window), rotated)
        return self.mlp(self.add(x, y, "post_attention")), None


class DecoderLayer(gemma.Layer):
    """Merged attention and MLP; called as `stack.run_layers` requires.

    `per_layer` has the layer's window and the number of its rotation; and with a cache, T = 1, its number and the keys and values
    of the encoder's states, as in `t5.DecoderLayer`.
    """

    head_norms = True

    @nn.compact
    def __call__(
        self,
        carry: tuple[Float[Array, "B T D"], layers.CachedKeyValues | None],
        per_layer: tuple[Any, tuple[Int[Array, ""], layers.KeyValues | None] | None],
        encoded: Float[Array, "inputs S D"],
        bias: Bias,
        rotations: Rotation,
        index: Int[Array, ""],
    ) -> tuple[tuple[Float[Array, "B T D"], layers.CachedKeyValues | None], layers.KeyValues | None]:
        (x, cached), ((window, number), of_cache) = carry, per_layer
        layer, before = of_cache or (None, None)
        rotated = jax.tree.map(lambda x: x[number], rotations)
        attention = self.attention("self_attention")
        y = self.norm("pre_self_attention")(x)
        kv = attention.project(y, rotated)
        if cached is not None and layer is not None:
            cached = cached.put(kv, layer, index)
            kv = cached.of(layer)
        known = before is not None
        before = before if known else attention.project(encoded)
        y = attention(y, kv, bias.replace(window=window), rotated, before=before)
        x = self.mlp(self.add(x, y, "post_self_attention"))
        return (x, cached), None if cached is None or known else before


class Encoder(gemma.Stack):
    """The stack of encoder layers, and the encoder's own embedding table where it has one."""

    def setup(self) -> None:
        if self.config.encoder_embedding:
            self.token_embedder = _embedder(self.config)

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S D"], mask: Array, segments: Int[Array, "B S"] | None, deterministic: bool
    ) -> Float[Array, "B S D"]:
        cfg, length = self.config, x.shape[1]
        window = ((cfg.sliding_window + 1) // 2 - 1, cfg.sliding_window // 2)
        x, _ = run_layers(
            EncoderLayer, cfg, self.drop(x, deterministic), _kinds(cfg, cfg.num_encoder_layers, window, length),
            Bias(keys=mask), _rotations(cfg, jnp.arange(length)),
            num_layers=cfg.num_encoder_layers, deterministic=deterministic,
        )  # fmt: skip
        return self.end(x, "encoder_norm", deterministic)


class Decoder(gemma.Stack):
    """The stack of decoder layers. With a cache T is 1."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        encoded: Encoded,
        segments: Int[Array, "B T"] | None,
        cache: Cache | None,
        deterministic: bool,
    ) -> tuple[Float[Array, "B T D"], Cache | None]:
        cfg, length, start = self.config, x.shape[1], encoded.mask.shape[1]
        number = cfg.num_decoder_layers
        index = jnp.zeros((), jnp.int32) if cache is None else cache.index
        keys = length if cache is None else cache.tokens.key.shape[3]
        window = (cfg.sliding_window - 1, gemma.ALL)  # before: with the token itself `sliding_window`
        bias = Bias(
            keys=jnp.pad(encoded.mask, ((0, 0), (0, keys)), constant_values=True),
            first=start + index,
            exempt=jnp.int32(start),
        )
        (x, tokens), before = run_layers(
            DecoderLayer, cfg,
            (self.drop(x, deterministic), None if cache is None else cache.tokens),
            (_kinds(cfg, number, window, keys), None if cache is None else (jnp.arange(number), cache.inputs)),
            encoded.states, bias, _rotations(cfg, index + jnp.arange(length)), index,
            num_layers=number, deterministic=deterministic,
        )  # fmt: skip
        x = self.end(x, "decoder_norm", deterministic)
        if cache is not None:
            cache = Cache(tokens, before if cache.inputs is None else cache.inputs, index + 1)
        return x, cache


@gin.configurable
class T5Gemma2(Visual, T5Gemma):
    """A T5Gemma 2 backbone. See `Visual` for its attributes."""

    encoder_type, decoder_type = Encoder, Decoder
    config: T5Gemma2Config  # pyright: ignore[reportIncompatibleVariableOverride]  # narrower; Flax modules are frozen

    @property
    def inputs_embeds_scale(self) -> float:
        """No factor: in Hugging Face's T5Gemma 2 it is inside the embedding module."""
        return 1.0

    @property
    def replaced_ids(self) -> tuple[int, ...]:
        """The ids of an image's end and of visual tokens."""
        return self.config.end_of_image_token_id, self.config.image_token_id

    @property
    def image_places(self) -> tuple[int, int]:
        """The id of visual tokens, and one token for each square of the tower's tokens."""
        return self.config.image_token_id, math.prod(self.vision_config.grid) // self.config.image_pool**2

    def new_embedder(self) -> Embed:
        """The table of both sides and the logits."""
        return _embedder(self.config)

    def new_projection(self) -> nn.Module:
        """A norm and a linear map without a bias."""
        return Projection(self.config.emb_dim, self.config.dtype)

    def image_features(self, batch: Batch, train: bool = False) -> Float[Array, "B N width"]:
        """Maps `images`, float32 [B, height, width, 3] in [-1, 1] or [B, M, ...], to means of the tower's tokens.

        Raises:
          UserError: for a tower whose tokens squares of `image_pool` do not tile.
        """
        (rows, columns), pool = self.vision_config.grid, self.config.image_pool
        if rows % pool or columns % pool:
            raise UserError(f"Squares of {pool} x {pool} tokens do not tile images of {rows} x {columns} tokens.")
        features = super().image_features(batch, train)
        squares = features.reshape(-1, rows // pool, pool, columns // pool, pool, features.shape[-1])
        return jnp.mean(squares, axis=(2, 4)).reshape(len(features), -1, features.shape[-1])

    def embed(self, batch: Batch, train: bool = False) -> Inputs:
        """Embeds the text, and `images` as visual tokens, which take the places of the text's `image_token_id`.

        See `Visual.embed`. A batch without images is text alone. Visual tokens without a place in the text are dropped; the places of
        images that a row does not have (`image_present`) are masked.
        """
        if not {"images", "image_features"} & batch.keys():
            return T5Gemma.embed(self, batch, train)
        places = jnp.asarray(batch["encoder_input_tokens"]) == self.config.image_token_id
        return super().embed(batch, train).replace(image_places=places)

    def encode(self, inputs: Inputs, train: bool = False) -> Encoded:
        """Runs the encoder on [prompt ; text with visual tokens].

        Raises:
          UserError: for packed examples.
        """
        if inputs.text_segments is not None:
            raise UserError(f"{type(self).__name__} takes one example per row; set PACK_EXAMPLES to False.")
        return super().encode(inputs, train)
