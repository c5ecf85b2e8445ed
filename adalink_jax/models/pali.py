"""PaLI-style encoder-decoder: a T5 whose encoder reads visual tokens before the text (Chen et al., 2023).

images -> ViT (`vision/`) -> one linear map to D (`projection/`) -> [visual tokens ; text tokens] -> T5

Any vision tower goes with any T5: joined from two public checkpoints, the projection is trained first.
"""

import dataclasses

import gin
import jax
import jax.numpy as jnp

from adalink_jax.models import layers
from adalink_jax.models.seam import Inputs
from adalink_jax.models.t5 import T5
from adalink_jax.models.vit import ViT, ViTConfig


@gin.configurable
class PaLI(T5):
    """A T5 with a vision tower.

    Attributes:
      config: the language model's.
      vision_config: the tower's.
      features_dtype: dtype that the projection's inputs are rounded to, as a cache of them stores them; None leaves them in
        the tower's activation dtype.
    """

    vision_config: ViTConfig
    features_dtype: str | None = dataclasses.field(default=None, kw_only=True)

    def setup(self):
        super().setup()
        self.vision = ViT(self.vision_config)
        self.projection = layers.Dense(self.config.emb_dim, ("vision_embed", "embed"), self.config.dtype, use_bias=True)

    def abstract_batch(self, batch_size: int, inputs: int, targets: int) -> dict[str, jax.ShapeDtypeStruct]:
        """As T5's, and the images."""
        shape = (batch_size, *self.vision_config.image_size, self.vision_config.channels)
        images = {"images": jax.ShapeDtypeStruct(shape, jnp.float32)}
        return super().abstract_batch(batch_size, inputs, targets) | images

    def image_features(self, batch: dict, train: bool = False) -> jax.Array:
        """`images` float32 [B, height, width, channels] in [-1, 1] -> what the projection reads, [B, N, width]."""
        return self.vision(batch["images"], train)

    def embed(self, batch: dict, train: bool = False) -> Inputs:
        """As T5's, with `images` -> image [B, N, D] and its mask.

        Instead of `images` there may be `image_features` [B, N, width], as `image_features` gave them for the same weights;
        `image_present` bool [B] masks the tokens of rows that have no image.
        """
        made = "image_features" in batch and not self.is_initializing()  # by this tower, once, and kept
        features = batch["image_features"] if made else self.image_features(batch, train)
        if self.features_dtype is not None:
            features = features.astype(self.features_dtype)
        image = self.projection(features)
        mask = jnp.ones(image.shape[:2], bool)
        if "image_present" in batch:
            mask = mask & batch["image_present"][:, None]
        return super().embed(batch, train).replace(image=image, image_mask=mask)
