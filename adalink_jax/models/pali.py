"""PaLI: a T5 whose encoder reads visual tokens before the text (Chen et al., 2022, arXiv:2209.06794).

    images -> ViT (`vision/`) -> one linear map to D (`projection/`) -> [visual tokens ; text tokens] -> T5

    [B, height, width, channels] -> [B, N, width of the tower] -> [B, N, D] -> [B, N + L, D]

Any vision tower can be combined with any T5. When they come from two public checkpoints, train the projection first.
"""

import dataclasses

import gin
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from adalink_jax.errors import UserError
from adalink_jax.models import layers
from adalink_jax.models.backbone import Batch
from adalink_jax.models.seam import Inputs
from adalink_jax.models.t5 import T5
from adalink_jax.models.vit import ViT, ViTConfig
from adalink_jax.typed_values import DType


@gin.configurable
class PaLI(T5):
    """A T5 with a vision tower.

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
        """T5's, the tower and the projection."""
        return (*super().encoder_parts, "vision", "projection")

    def setup(self) -> None:
        super().setup()
        self.vision = ViT(self.vision_config)
        self.projection = layers.Dense(self.config.emb_dim, ("vision_embed", "embed"), self.config.dtype, use_bias=True)

    def abstract_batch(self, batch_size: int, inputs: int, targets: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes of T5's features and of the images."""
        shape = (batch_size, *self.vision_config.image_size, self.vision_config.channels)
        images = {"images": jax.ShapeDtypeStruct(shape, jnp.float32)}
        return super().abstract_batch(batch_size, inputs, targets) | images

    def abstract_packed_batch(self, batch_size: int, inputs: int, targets: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Refuses packed examples: rows with images hold one example.

        Raises:
          UserError: always.
        """
        raise UserError(f"{type(self).__name__} reads images, and only text can be packed; set PACK_EXAMPLES to False.")

    def image_features(self, batch: Batch, train: bool = False) -> Float[Array, "B N width"]:
        """Maps `images`, float32 [B, height, width, channels] in [-1, 1], to the projection's inputs."""
        return self.vision(batch["images"], train)

    def embed(self, batch: Batch, train: bool = False) -> Inputs:
        """Embeds the text as T5 does, and `images` as visual tokens [B, N, D].

        The batch may have cached `image_features` [B, N, width] instead of `images`, computed by `image_features` with the
        same weights. `image_present`, bool [B], masks the tokens of rows that have no image.
        """
        cached = "image_features" in batch and not self.is_initializing()
        features = jnp.asarray(batch["image_features"]) if cached else self.image_features(batch, train)
        if self.features_dtype is not None:
            features = features.astype(self.features_dtype)
        image = self.projection(features)
        mask = jnp.ones(image.shape[:2], bool)
        if "image_present" in batch:
            mask = mask & batch["image_present"][:, None]
        return super().embed(batch, train).replace(image=image, image_mask=mask)
