"""PaLI: a T5 whose encoder reads visual tokens before the text (Chen et al., 2022, arXiv:2209.06794).

images -> ViT (`vision/`) -> one linear map to D (`projection/`) -> [visual tokens ; text tokens] -> T5

[B, height, width, channels] -> [B, N, width of the tower] -> [B, N, D] -> [B, N + L, D]
"""

import gin

from adalink_jax.models.t5 import T5
from adalink_jax.models.visual import Visual


@gin.configurable
class PaLI(Visual, T5):
    """A T5 with a vision tower. See `Visual` for its attributes."""
