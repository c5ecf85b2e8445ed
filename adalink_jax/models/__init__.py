"""Backbones: T5, the vision tower, PaLI, BLIP-2; the seam's structs; decoding. They know nothing of adapters."""

from adalink_jax.models.blip2 import BLIP2
from adalink_jax.models.pali import PaLI
from adalink_jax.models.qformer import QFormerConfig
from adalink_jax.models.seam import Encoded, Inputs
from adalink_jax.models.t5 import T5, T5Config
from adalink_jax.models.vit import ViT, ViTConfig

__all__ = ["BLIP2", "Encoded", "Inputs", "PaLI", "QFormerConfig", "T5", "T5Config", "ViT", "ViTConfig"]
