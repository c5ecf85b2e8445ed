"""Pix2Struct (Lee et al., 2023, arXiv:2210.03347), MatCha (arXiv:2212.09662) and DePlot (arXiv:2212.10505): a T5 that reads a picture.

    patches [B, N, 2 + pixels] = row, column, pixels
    tokens  [B, N, D]          = pixels @ kernel + bias + row_embedding[row] + column_embedding[column]      (`projection/`)
    T5's encoder on the tokens, without relative positions -> T5's decoder

There is no vision tower, and the encoder reads no text: questions are drawn above the picture (`data/patches.py`). Rows and columns
are counted from 1; a patch of row 0 is padding.
"""

import dataclasses

import flax.linen as nn
import gin
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from adalink_jax.errors import UserError
from adalink_jax.models import layers, t5
from adalink_jax.models.attention import Bias
from adalink_jax.models.backbone import Batch
from adalink_jax.models.quantised import product
from adalink_jax.models.seam import Inputs
from adalink_jax.models.vit import BACKGROUND
from adalink_jax.parallel import constrain
from adalink_jax.typed_values import PositiveInt

PLACE = 2  # numbers before a patch's pixels: its row and column
_NOT_HERE = ("encoder_embedding", "relpos_per_layer")  # fields of T5Config that an encoder of patches cannot have


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Pix2StructConfig(t5.T5Config):
    """Sizes and settings of a Pix2Struct: those of T5Config, and how it reads pictures.

    Attributes:
      max_patches: N; a picture is scaled to at most so many patches, and padded to them.
      num_positions: rows of the tables of rows and of columns.
      patch_size: side of a square patch in pixels.
      channels: 3 (RGB) or 1 (grey).
      background: the colour under transparent pixels, "white" or "black"; None shows the colours stored in them.
      header_font: a TrueType file; the input's text is drawn with it above the picture (the published models saw Arial). "pillow" is
        the font that comes with Pillow. None: pictures have no header, and a text is refused.
    """

    max_patches: PositiveInt = 2048
    num_positions: PositiveInt = 4096
    patch_size: PositiveInt = 16
    channels: PositiveInt = 3
    background: str | None = "white"
    header_font: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if wrong := [name for name in _NOT_HERE if getattr(self, name)]:
            raise UserError(
                f"Pix2StructConfig.{wrong[0]} is True; a Pix2Struct's encoder has no such table, so leave it out."
            )
        if self.max_patches > self.num_positions:
            raise UserError(
                f"Pix2StructConfig.max_patches is {self.max_patches}; rows and columns are numbered up to {self.num_positions} "
                f"(num_positions), so set at most that."
            )
        if self.background not in BACKGROUND:
            raise UserError(f"Pix2StructConfig.background is {self.background!r}; it takes one of {BACKGROUND}.")

    @property
    def patch_width(self) -> int:
        """Numbers of a patch: its row, its column, and its pixels."""
        return PLACE + self.patch_size**2 * self.channels


class Projection(nn.Module):
    """The linear map of a patch's pixels to D, and the tables of rows and columns.

    Raises:
      UserError: for patches of another size than the model's.
    """

    config: Pix2StructConfig

    @nn.compact
    def __call__(self, patches: Float[Array, "B N numbers"], place: Int[Array, "B N 2"]) -> Float[Array, "B N D"]:
        cfg = self.config
        if patches.shape[-1] != cfg.patch_width:
            raise UserError(
                f"The model takes patches of {cfg.patch_width} numbers (row, column, {cfg.patch_size} x {cfg.patch_size} x "
                f"{cfg.channels} pixels), these have {patches.shape[-1]}."
            )
        table = lambda name: layers.param(
            self, name, nn.initializers.normal(0.02), (cfg.num_positions, cfg.emb_dim), ("position", "embed")
        )
        axes = ("patch", "embed")
        kernel = layers.param(self, "kernel", layers.fan_in, (cfg.patch_width - PLACE, cfg.emb_dim), axes)
        bias = layers.param(self, "bias", nn.initializers.zeros, (cfg.emb_dim,), ("embed",))
        x = product(patches[..., PLACE:], kernel, cfg.dtype, axes) + bias.astype(cfg.dtype)
        for axis, name in enumerate(("row_embedding", "column_embedding")):
            # The last of `num_positions` patches in one row or column has the table's last vector.
            x = x + jnp.take(table(name), place[..., axis], axis=0, mode="clip").astype(cfg.dtype)
        return constrain(x, "batch", "length", "embed")


class Encoder(t5.Encoder):
    """T5's encoder without relative positions."""

    def positioned(self, bias: Bias, distances: Int[Array, " distances"]) -> Bias:
        """The bias as it is: places are in the tokens."""
        return bias


@gin.configurable
class Pix2Struct(t5.T5):
    """A Pix2Struct backbone. See `Backbone` for its methods; the table of text embeddings is the decoder's alone."""

    encoder_type = Encoder
    config: Pix2StructConfig  # pyright: ignore[reportIncompatibleVariableOverride]  # narrower; Flax modules are frozen

    @property
    def encoder_parts(self) -> tuple[str, ...]:
        """The encoder and the projection."""
        return (*super().encoder_parts, "projection")

    @property
    def reads_text(self) -> bool:
        """False: what it is asked is drawn above the picture."""
        return False

    def setup(self) -> None:
        super().setup()
        self.projection = Projection(self.config)

    def abstract_batch(self, batch_size: int, inputs: int, targets: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of `images`, the patches of one picture per row, and of the decoder's features."""
        batch = super().abstract_batch(batch_size, inputs, targets)
        del batch["encoder_input_tokens"]
        shape = (batch_size, self.config.max_patches, self.config.patch_width)
        return batch | {"images": jax.ShapeDtypeStruct(shape, jnp.float32)}

    def abstract_packed_batch(self, batch_size: int, inputs: int, targets: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Refuses packed examples: rows with images hold one example.

        Raises:
          UserError: always.
        """
        raise UserError(f"{type(self).__name__} reads images, and only text can be packed; set PACK_EXAMPLES to False.")

    def as_images(self, numbers: np.ndarray) -> np.ndarray:
        """The numbers with rows and columns before them, two patches in a row; every second picture is half as high."""
        images, count = numbers.copy(), numbers.shape[1]
        images[..., :PLACE] = np.stack(np.divmod(np.arange(count), 2), -1) + 1
        images[1::2, (count + 1) // 2 :] = 0
        return images

    def embed(self, batch: Batch, train: bool = False) -> Inputs:
        """Embeds `images`, float32 [B, N, 2 + pixels], as visual tokens [B, N, D]; rows of 0 are masked."""
        patches = jnp.asarray(batch["images"])
        place = patches[..., :PLACE].astype(jnp.int32)
        return Inputs(image=self.projection(patches, place), image_mask=place[..., 0] > 0)

    def embed_text(self, tokens: Int[Array | np.ndarray, "B L"]) -> Float[Array, "B L D"]:
        """Refuses text.

        Raises:
          UserError: always.
        """
        raise UserError(f"{type(self).__name__}'s encoder reads no text; it is drawn above the picture (HEADER_FONT).")
