"""What all families that read images share: a vision tower, and a map of its outputs to the language model's width.

    images -> ViT (`vision/`) -> `projection/` -> visual tokens

    [B, height, width, channels] -> [B, N, width of the tower] -> [B, N, D]        [B, M, height, ...] for M images in a row

A family puts `Visual` before its language model: `class PaLI(Visual, T5)`. Any tower can be combined with any language model. When
they come from two public checkpoints, train the projection first.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from adalink_jax.errors import UserError
from adalink_jax.models import layers
from adalink_jax.models.backbone import Backbone, Batch
from adalink_jax.models.seam import Inputs
from adalink_jax.models.vit import ViT, ViTConfig
from adalink_jax.typed_values import DType


class Visual(Backbone):
    """Base of the families that read images, beside a language model's class. See `Backbone` for its methods.

    Attributes:
      config: configuration of the language model.
      vision_config: configuration of the vision tower.
      features_dtype: dtype that the projection's inputs are rounded to, so that cached ones give the same numbers; None keeps
        the tower's activation dtype.
    """

    vision_config: ViTConfig
    features_dtype: DType | None = dataclasses.field(default=None, kw_only=True)

    @property
    def encoder_parts(self) -> tuple[str, ...]:
        """The language model's, the tower and the projection."""
        return (*super().encoder_parts, "vision", "projection")

    def setup(self) -> None:
        super().setup()
        self.vision = ViT(self.vision_config)
        self.projection = self.new_projection()

    def new_projection(self) -> nn.Module:
        """The map from the tower's width to D; a linear one with a bias, unless a family has another."""
        return layers.Dense(self.config.emb_dim, ("vision_embed", "embed"), self.config.dtype, use_bias=True)

    def abstract_batch(self, batch_size: int, inputs: int, targets: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of the language model's features and of the images, one in each row."""
        shape = (batch_size, *self.vision_config.image_size, self.vision_config.channels)
        images = {"images": jax.ShapeDtypeStruct(shape, jnp.float32)}
        return super().abstract_batch(batch_size, inputs, targets) | images  # pyright: ignore[reportAbstractUsage]

    def abstract_packed_batch(self, batch_size: int, inputs: int, targets: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Refuses packed examples: rows with images hold one example.

        Raises:
          UserError: always.
        """
        raise UserError(f"{type(self).__name__} reads images, and only text can be packed; set PACK_EXAMPLES to False.")

    def image_features(self, batch: Batch, train: bool = False) -> Float[Array, "B N width"]:
        """Maps `images`, float32 [B, height, width, channels] in [-1, 1], to the projection's inputs.

        Rows with M images have them as [B, M, height, width, channels]; their N tokens are those of one image after the other.
        """
        images = jnp.asarray(batch["images"])
        features = self.vision(images.reshape(-1, *images.shape[-3:]), train)
        return features.reshape(images.shape[0], -1, features.shape[-1])

    def embed(self, batch: Batch, train: bool = False) -> Inputs:
        """Embeds the text as the language model does, and `images` as visual tokens [B, N, D].

        The batch may have cached `image_features` [B, N, width] instead of `images`, computed by `image_features` with the
        same weights. `image_present`, bool [B] or [B, M], masks the tokens of images that a row does not have.
        """
        cached = "image_features" in batch and not self.is_initializing()
        features = jnp.asarray(batch["image_features"]) if cached else self.image_features(batch, train)
        if self.features_dtype is not None:
            features = features.astype(self.features_dtype)
        image = self.projection(features)
        mask = jnp.ones(image.shape[:2], bool)
        if "image_present" in batch:
            present = jnp.asarray(batch["image_present"]).reshape(image.shape[0], -1)
            mask = mask & jnp.repeat(present, image.shape[1] // present.shape[1], axis=1)
        embedded = super().embed(batch, train)  # pyright: ignore[reportAbstractUsage]
        return embedded.replace(image=image, image_mask=mask)
