"""Backbones and what they share: families of models, the seam's structs, decoding. They know nothing of adapters.

`backbone` is the interface; a family implements it (`t5`, `t5gemma`, `t5gemma2`, `pali`, `blip2`, `paligemma`, `pix2struct`, from the parts `vit`,
`qformer`, `gemma`, `layers`, `stack`).
"""

from adalink_jax.models.backbone import Backbone, Batch
from adalink_jax.models.blip2 import BLIP2
from adalink_jax.models.pali import PaLI
from adalink_jax.models.paligemma import PaliGemma, PaliGemmaConfig
from adalink_jax.models.pix2struct import Pix2Struct, Pix2StructConfig
from adalink_jax.models.qformer import QFormerConfig
from adalink_jax.models.seam import Encoded, Inputs
from adalink_jax.models.t5 import T5, T5Config
from adalink_jax.models.t5gemma import T5Gemma, T5GemmaConfig
from adalink_jax.models.t5gemma2 import T5Gemma2, T5Gemma2Config
from adalink_jax.models.vit import ViT, ViTConfig

__all__ = [
    "BLIP2",
    "Backbone",
    "Batch",
    "Encoded",
    "Inputs",
    "PaLI",
    "PaliGemma",
    "PaliGemmaConfig",
    "Pix2Struct",
    "Pix2StructConfig",
    "QFormerConfig",
    "T5",
    "T5Config",
    "T5Gemma",
    "T5Gemma2",
    "T5Gemma2Config",
    "T5GemmaConfig",
    "ViT",
    "ViTConfig",
]
