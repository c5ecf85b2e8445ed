"""A vision transformer: pre-norm layers, learned positions, a final norm (Dosovitskiy et al., 2020, arXiv:2010.11929).

    images [B, height, width, channels] -> patches [B, N, patch^2 * channels] -> tokens [B, N, width]

By configuration it is SigLIP's tower (no class token), ViT, or EVA's tower as in BLIP-2 (both with a class token and exact
GELU).
"""

import dataclasses

import flax.linen as nn
import gin
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from adalink_jax.errors import UserError
from adalink_jax.models import layers
from adalink_jax.models.attention import AttentionKind
from adalink_jax.models.layers import Activation
from adalink_jax.models.stack import StackConfig, run_layers
from adalink_jax.parallel import constrain
from adalink_jax.typed_values import DType, FiniteFloat, Fraction, NonNegativeFloat, PositiveFloat, PositiveInt

RESAMPLE = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
BACKGROUND = ("white", "black", None)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class ViTConfig(StackConfig):
    """Sizes of a vision tower.

    Attributes:
      image_size: (height, width) in pixels.
      channels: colour channels.
      patch_size: side of a square patch; must divide both sides of the image.
      emb_dim, num_heads, mlp_dim, num_layers: as in T5Config; head width is emb_dim / num_heads.
      class_token: put a learned token, with its own position, before the patches; it is one of the visual tokens.
      activation: activation of the MLP: "gelu" (tanh approximation: SigLIP) or "gelu_exact" (ViT, EVA).
      layer_norm_epsilon: epsilon of all norms: 1e-6 (SigLIP, EVA) or 1e-12 (ViT).
      pixel_mean, pixel_std: per channel, for pixels in [0, 1]: images are normalised as (pixel - mean) / std. None keeps them
        in [-1, 1], which is a mean and std of 0.5.
      resample: how files of images are scaled to `image_size`: "nearest", "box", "bilinear" (ViT), "hamming", "bicubic"
        (SigLIP, BLIP-2) or "lanczos".
      keep_aspect: scale the shorter edge, and crop the centre (CLIP); False stretches both edges.
      crop_pct: the share of the scaled edges that the central crop keeps: 224 / 256 if edges of 256 are cropped to 224.
      background: the colour under transparent pixels, "white" or "black"; None shows the colours stored in them.
      dropout_rate, dtype, scan_layers, remat, attention: as in T5Config.
    """

    image_size: tuple[PositiveInt, PositiveInt]
    patch_size: PositiveInt
    emb_dim: PositiveInt
    num_heads: PositiveInt
    mlp_dim: PositiveInt
    num_layers: PositiveInt
    channels: PositiveInt = 3
    class_token: bool = False
    activation: Activation = "gelu"
    layer_norm_epsilon: NonNegativeFloat = 1e-6
    pixel_mean: tuple[FiniteFloat, ...] | None = None
    pixel_std: tuple[PositiveFloat, ...] | None = None
    resample: str = "bicubic"
    keep_aspect: bool = False
    crop_pct: Fraction = 1.0
    background: str | None = "white"
    dropout_rate: Fraction = 0.0
    dtype: DType = "float32"
    scan_layers: bool = False
    remat: str = "none"
    attention: AttentionKind = "auto"

    def __post_init__(self) -> None:
        if (self.pixel_mean is None) != (self.pixel_std is None):
            raise UserError("ViTConfig.pixel_mean and ViTConfig.pixel_std go together; set both or neither.")
        for name in ("pixel_mean", "pixel_std"):
            if len(getattr(self, name) or range(self.channels)) != self.channels:
                raise UserError(f"ViTConfig.{name} must have one number for each of the {self.channels} channels.")
        for name, choices in (("resample", RESAMPLE), ("background", BACKGROUND)):
            if getattr(self, name) not in choices:
                raise UserError(f"ViTConfig.{name} is {getattr(self, name)!r}; it takes one of {choices}.")
        if self.emb_dim % self.num_heads:
            raise UserError(
                f"ViTConfig.emb_dim is {self.emb_dim}; it must be a multiple of num_heads, {self.num_heads}."
            )
        if not 0 < self.crop_pct <= 1:
            raise UserError(f"ViTConfig.crop_pct is {self.crop_pct!r}; it is a share, above 0 and at most 1.")

    def normalized(
        self, images: Float[Array | np.ndarray, "... channels"]
    ) -> Float[Array | np.ndarray, "... channels"]:
        """Images in [-1, 1] as the patches read them: (pixel - `pixel_mean`) / `pixel_std`."""
        if self.pixel_mean is None:
            return images
        return (images / 2 + 0.5 - jnp.asarray(self.pixel_mean)) / jnp.asarray(self.pixel_std)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def num_tokens(self) -> int:
        """N: visual tokens of one image."""
        return self.grid[0] * self.grid[1] + self.class_token


class ViTLayer(nn.Module):
    """Pre-norm self-attention and MLP, with biases; called as `stack.run_layers` requires."""

    config: ViTConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B N width"], _: None) -> tuple[Float[Array, "B N width"], None]:
        cfg = self.config
        head_dim = cfg.emb_dim // cfg.num_heads
        drop = lambda y: nn.Dropout(cfg.dropout_rate)(y, deterministic=self.deterministic)
        attention = layers.Attention(
            cfg.num_heads, head_dim, cfg.dropout_rate, cfg.dtype, self.deterministic,
            scale=head_dim**-0.5, use_bias=True, features=cfg.emb_dim, kind=cfg.attention, name="attention",
        )  # fmt: skip
        y = layers.LayerNorm(cfg.dtype, cfg.layer_norm_epsilon, name="pre_attention_layer_norm")(x)
        x = x + drop(attention(y, attention.project(y)))
        y = layers.LayerNorm(cfg.dtype, cfg.layer_norm_epsilon, name="pre_mlp_layer_norm")(x)
        y = layers.MlpBlock(
            cfg.mlp_dim, (cfg.activation,), cfg.dropout_rate, cfg.dtype, self.deterministic, use_bias=True, name="mlp"
        )(y)
        return constrain(x + drop(y), "batch", "length", "embed"), None


class ViT(nn.Module):
    """The tower: images, float32 in [-1, 1], to visual tokens.

    Raises:
      UserError: if the images do not have the configured size, or patches do not tile them.
    """

    config: ViTConfig

    @nn.compact
    def __call__(
        self, images: Float[Array | np.ndarray, "B height width channels"], train: bool = False
    ) -> Float[Array, "B N emb"]:
        cfg = self.config
        expected = (*cfg.image_size, cfg.channels)
        if images.shape[1:] != expected:
            raise UserError(f"The vision tower takes images of {expected}, these are {images.shape[1:]}.")
        (height, width), p = cfg.image_size, cfg.patch_size
        if height % p or width % p:
            raise UserError(f"Patches of {p} pixels do not tile images of {height} x {width}.")
        x = (
            jnp.asarray(cfg.normalized(images))
            .reshape(-1, height // p, p, width // p, p, cfg.channels)
            .transpose(0, 1, 3, 2, 4, 5)
        )
        x = x.reshape(x.shape[0], -1, p * p * cfg.channels)  # row-major patches, pixels row-major
        x = layers.Dense(cfg.emb_dim, ("patch", "embed"), cfg.dtype, use_bias=True, name="patch_embedding")(x)
        if cfg.class_token:
            token = layers.param(
                self, "class_token", nn.initializers.normal(0.02), (1, cfg.emb_dim), ("position", "embed")
            )
            token = jnp.broadcast_to(token.astype(cfg.dtype), (x.shape[0], 1, cfg.emb_dim))
            x = jnp.concatenate([token, x], axis=1)
        positions = layers.param(
            self, "pos_embedding", nn.initializers.normal(0.02), (cfg.num_tokens, cfg.emb_dim), ("position", "embed")
        )
        x = constrain(x + positions.astype(cfg.dtype), "batch", "length", "embed")
        x, _ = run_layers(ViTLayer, cfg, x, None, num_layers=cfg.num_layers, deterministic=not train)
        return layers.LayerNorm(cfg.dtype, cfg.layer_norm_epsilon, name="encoder_norm")(x).astype(jnp.dtype(cfg.dtype))
